"""A simulated device whose faults are real: what they do to a process, and that an isolated worker
contains them. Everything here is simulated."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import onelane  # noqa: E402
import onelane.sim as sim  # noqa: E402

pytestmark = pytest.mark.timeout(300)
SCRIPT = Path(__file__).parent / "sim_faults.py"
ABORT, HANG = -1.0, -2.0


@pytest.fixture(autouse=True, scope="module")
def _it_can_be_built():
    try:
        with sim.device():
            pass
    except sim.SimUnavailable as error:
        pytest.skip(str(error))


def is_apples(text):
    return "failed assertion `" in text or "Segmentation fault" in text


def test_an_abort_ends_the_process_with_its_text():
    done = subprocess.run(
        [sys.executable, SCRIPT, "abort"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == -signal.SIGABRT, done
    assert is_apples(done.stderr), done.stderr


def test_a_hang_does_not_return():
    process = subprocess.Popen([sys.executable, SCRIPT, "hang"], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        while line and "no simulated thread can go on" not in line:
            line = process.stderr.readline()
        assert line, "the hang says so"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not hasattr(onelane, "Isolation"), reason="isolation= is not there")
@pytest.mark.parametrize("fault", [ABORT, HANG])
def test_an_isolated_worker_contains_it(fault):
    # A hang needs no second try to be believed.
    isolation = onelane.Isolation(hang_s=5, retries=0)
    with onelane.BatchQueue("sim_faults:load", "cpu", isolation=isolation) as queue:
        inputs = [torch.full((1, 4), float(i)) for i in range(8)]
        inputs[3] = torch.full((1, 4), fault)
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(queue, x) for x in inputs]
        for i, future in enumerate(futures):
            if i != 3:
                assert torch.equal(future.result(), inputs[i] * 2)
        if fault == ABORT:
            with pytest.raises(onelane.EngineCrashed, match="SIGABRT") as raised:
                futures[3].result()
            assert is_apples(raised.value.stderr)
        else:
            with pytest.raises(onelane.EngineHung) as raised:
                futures[3].result()
            # Where it hangs, by the stacks that it wrote when it was ended.
            assert "in hang" in raised.value.stderr
        assert torch.equal(queue(inputs[1]), inputs[1] * 2)
