"""The audit finds what goes around the worker, and costs nothing when it is off."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils._python_dispatch import _get_current_dispatch_mode  # noqa: E402

import onelane  # noqa: E402

WITHIN_S = 60


@pytest.fixture
def worker():
    with onelane.DeviceExecutor("cpu") as executor:
        yield executor


def in_thread(function, name="handler-3"):
    errors = []

    def body():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    thread.join(WITHIN_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_the_worker_is_not_reported_and_others_are_once_per_call_site(worker):
    module, x = nn.Linear(3, 4), torch.ones(2, 3)
    told = []
    with onelane.audit("cpu", report=told.append) as audit:
        for _ in range(3):
            worker.call(module, x)
        assert audit.findings == []
        for _ in range(3):
            module(x)
        assert len(audit.findings) == 1
        module(x)
    assert told == audit.findings
    first, second = audit.findings
    assert first.action == "forward of Linear"
    assert (first.file, second.line) == (__file__, first.line + 2)
    assert first.thread == threading.current_thread().name
    assert "test_the_worker_is_not_reported" in first.stack
    assert first.worker is not None
    assert "when it first used the device" in first.worker_stack
    assert first.worker in str(first)


def test_the_workers_stack_is_the_present_one_while_it_runs(worker):
    module, x = nn.Linear(3, 4), torch.ones(2, 3)
    inside, go_on = threading.Event(), threading.Event()

    def deep_in_the_model():
        module(x)
        inside.set()
        assert go_on.wait(WITHIN_S)

    with onelane.audit("cpu", report=lambda _: None) as audit:
        running = worker.submit(deep_in_the_model)
        assert inside.wait(WITHIN_S)
        module(x)
        go_on.set()
        running.result(WITHIN_S)
    (finding,) = audit.findings
    assert "(now)" in finding.worker_stack
    assert "deep_in_the_model" in finding.worker_stack


def test_operators_are_seen_in_threads_that_start_later(worker):
    x = torch.ones(2, 3)

    class Handler(threading.Thread):
        def run(self):
            x.add(1)
            x.t()  # a view does nothing on a device
            torch.zeros(3)
            torch.zeros(3, device="meta")

    with onelane.audit("cpu", report=lambda _: None) as audit:
        thread = Handler(name="a subclass", daemon=True)
        thread.start()
        thread.join(WITHIN_S)
        worker.call(lambda: x.add(2))
    assert [finding.action for finding in audit.findings] == [
        "aten.add.Tensor",
        "aten.zeros.default",
    ]
    assert {finding.thread for finding in audit.findings} == {"a subclass"}


def test_forward_is_seen_in_threads_that_ran_before():
    module, x = nn.Linear(3, 4), torch.ones(2, 3)
    go, done = threading.Event(), threading.Event()

    def handler():
        assert go.wait(WITHIN_S)
        module(x)
        done.set()

    thread = threading.Thread(target=handler, name="pool thread", daemon=True)
    thread.start()
    with onelane.audit("cpu", report=lambda _: None) as audit:
        go.set()
        assert done.wait(WITHIN_S)
    thread.join(WITHIN_S)
    (finding,) = audit.findings
    assert finding.thread == "pool thread"
    assert finding.worker is None


def test_strict_raises_every_time_and_the_worker_goes_on(worker):
    module, x = nn.Linear(3, 4), torch.ones(2, 3)
    with onelane.audit("cpu", strict=True) as audit:
        for _ in range(2):
            with pytest.raises(onelane.OffWorker, match="forward of Linear on cpu from thread"):
                module(x)
        with pytest.raises(onelane.OffWorker, match="handler-3"):
            in_thread(lambda: torch.add(x, 1))
        assert worker.call(module, x).shape == (2, 4)
    assert len(audit.findings) == 2
    assert module(x).shape == (2, 4)


def test_another_devices_worker_is_not_this_ones(worker):
    module, x = nn.Linear(3, 4), torch.ones(2, 3)
    with (
        onelane.DeviceExecutor("mlx") as other,
        onelane.audit("cpu", strict=True),
        pytest.raises(onelane.OffWorker),
    ):
        other.call(module, x)


def test_another_device_is_not_reported():
    with onelane.audit("mps", strict=True) as audit:
        nn.Linear(3, 4)(torch.ones(2, 3))
    assert audit.findings == []


def test_off_it_leaves_nothing_behind():
    hooks = torch.nn.modules.module._global_forward_pre_hooks
    start, hooked = threading.Thread.start, len(hooks)
    audit = onelane.audit("cpu")
    audit.start()
    assert (len(hooks), threading.Thread.start) != (hooked, start)
    with pytest.raises(RuntimeError, match="on already"):
        audit.start()
    audit.stop()
    assert (len(hooks), threading.Thread.start) == (hooked, start)
    assert _get_current_dispatch_mode() is None


def test_it_warns_by_default(caplog):
    x = torch.ones(1)
    with onelane.audit("cpu"):
        nn.Identity()(x)
    assert "forward of Identity on cpu" in caplog.text


def test_on_the_simulated_device_every_action_is_seen():
    sim = pytest.importorskip("onelane.sim")
    try:
        device = sim.device("upstream-2.15")
        device.__enter__()
    except sim.SimUnavailable as error:
        pytest.skip(str(error))
    try:
        with onelane.DeviceExecutor("mps") as worker:
            module = worker.call(lambda: nn.Linear(3, 4).to("mps"))
            x = worker.call(lambda: torch.ones(2, 3).to("mps"))
            with onelane.audit("mps", report=lambda _: None) as audit:
                worker.call(lambda: module(x).cpu())
                assert audit.findings == []

                def handler():
                    y = x.add(1)
                    torch.mps.synchronize()
                    del y

                in_thread(handler)
            actions = [finding.action for finding in audit.findings]
            line = audit.findings[0].line
            assert [finding.line - line for finding in audit.findings] == [0, 1, 2]
            assert actions[0] == "alloc (simulated)"
            assert actions[1].startswith("torch.mps.synchronize")
            assert actions[2] == "free (simulated)"
            # The device's own check says the same.
            kinds = {v["kind"] for v in device.violations() if v["thread"] == "handler-3"}
            assert kinds == {"alloc", "lookup", "encode", "synchronise", "free"}
            with onelane.audit("mps", strict=True), pytest.raises(onelane.OffWorker, match="alloc"):
                in_thread(lambda: x.add(1))
            worker.call(lambda: torch.mps.synchronize())
            module = x = None
    finally:
        device.__exit__()


AUDITED = """
import pytest, onelane
torch = pytest.importorskip("torch")

class Holder:
    def __init__(self):
        self.layer = torch.nn.Linear(2, 2).to("mps")

    def call(self):
        return self.layer(torch.ones(1, 2, device="mps"))

def test_fine(device):
    assert onelane.guard(Holder, device).call().shape == (1, 2)

def test_around_the_worker(device, monkeypatch):
    # The package as it must not be: an object is dropped where its proxy goes.
    monkeypatch.setattr(onelane._lane.Lane, "release", lambda lane, cell: cell.empty())
    onelane.guard(Holder, device).call()

def test_of_what_is_not_simulated(device):
    assert device.device == "cpu"

def test_without_a_device():
    raise AssertionError("it is not run")
"""


@pytest.mark.skipif(
    sys.platform == "darwin" or not (shutil.which("c++") or shutil.which("g++")),
    reason="needs the simulated device, which needs a C++ compiler",
)
@pytest.mark.timeout(300)
def test_the_audited_run_fails_where_the_package_goes_around_its_worker(tmp_path):
    here = Path(__file__).parent
    shutil.copy(here / "conftest.py", tmp_path)
    (tmp_path / "test_audited.py").write_text(AUDITED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--audit", "-rA", "--rootdir", str(tmp_path), "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 1, said
    assert "2 passed, 1 skipped, 1 deselected, 1 error" in said
    assert "ERROR test_audited.py::test_around_the_worker" in said
    assert "free" in said
