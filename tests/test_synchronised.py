"""What leaves a worker has been computed: on the simulated MPS device, where it shows."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

import onelane  # noqa: E402
import onelane.sim as sim  # noqa: E402

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 60
COUNT = 1 << 19  # 2 MiB of floats: no thread keeps such a block for itself


@pytest.fixture(autouse=True)
def device():
    try:
        with sim.device() as found, torch.no_grad():
            yield found
    except sim.SimUnavailable as error:
        pytest.skip(str(error))


def overwrite():
    """Another thread takes the blocks that are free, and writes to them at once."""

    def take():
        # Held together: one block each.
        taken = [torch.full((COUNT,), 7.0).to("mps") for _ in range(4)]
        del taken

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(WITHIN_S)
    assert not thread.is_alive()


def model(x):
    # The sum is a block that is free when this returns; who reads it late reads another's bytes.
    return (x + 1) * 2


@pytest.mark.parametrize("copies", [True, False], ids=["copies", "views"])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "in a group"])
def test_a_response_on_the_device_is_complete(device, group, copies):
    x = torch.full((1, COUNT), 1.0)
    requests = onelane.Tensors(output="device", copy=copies)
    with onelane.BatchQueue(model, "mps", requests) as queue:
        ys = [f.result(WITHIN_S) for f in queue.submit_many([x, x])] if group else [queue(x)]
        overwrite()
        for y in ys:
            assert y.device.type == "mps"
            assert set(y.cpu().flatten().tolist()) == {4.0}
    assert device.stats()["stale_reads"] == 0


def test_the_check_can_fail(device):
    y = model(torch.full((1, COUNT), 1.0).to("mps"))
    overwrite()
    assert set(y.cpu().flatten().tolist()) != {4.0}
    assert device.stats()["stale_reads"] > 0
