"""When guarded calls and requests are refused, expire, go first, and end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from common import Hold

pytestmark = pytest.mark.timeout(90)


class Engine:
    """Says what it ran, in order."""

    def __init__(self):
        self.ran = []
        self.sizes = []

    def note(self, x, timeout=None, priority=None):
        self.ran.append(x)
        return (x, timeout, priority)

    def seen(self):
        return list(self.ran)

    def encode(self, texts):
        self.sizes.append(len(texts))
        return [text + "!" for text in texts]

    def count(self, n):
        yield from range(n)


@pytest.fixture
def guarded(device):
    return onelane.guard(Engine, device)


def one_running(device):
    """A queue in which one request runs, two may wait, and nobody has come yet."""
    return onelane.BatchQueue(
        lambda xs: xs, device, requests=onelane.Items(), capacity=2, max_batch_size=1
    )


# --- Refused at once ----------------------------------------------------------------------------


def test_try_submit_refuses_at_once_and_loses_nothing(device):
    queue = one_running(device)
    with Hold(device):
        accepted = [queue.try_submit(i) for i in range(2)]
        for _ in range(5):
            with pytest.raises(onelane.QueueFull):
                queue.try_submit("too many")
        assert queue.stats().waiting == 2
    assert [future.result(30) for future in accepted] == [0, 1]
    assert queue.stats().refused == 5
    assert queue.try_submit(7, timeout=30).result(30) == 7


def test_try_submit_of_an_executor(device):
    ran = []
    with Hold(device):
        futures = [device.try_submit(ran.append, i) for i in range(16_384)]
        with pytest.raises(onelane.QueueFull):
            device.try_submit(ran.append, "too many")
    futures[-1].result(60)
    assert ran == list(range(16_384))


def test_a_full_executor_holds_no_event_loop_up(device):
    """Each call waits for room by itself; one that is cancelled is not run."""
    ran = []

    async def main():
        with Hold(device):
            full = [device.submit(int) for _ in range(16_384)]
            tasks = [asyncio.ensure_future(device.acall(ran.append, i)) for i in range(100)]
            await asyncio.sleep(0)
            assert threading.active_count() < 50
            tasks[3].cancel()
            await asyncio.wait([tasks[3]])
        await asyncio.gather(*tasks, return_exceptions=True)
        return full

    full = asyncio.run(main())
    assert sorted(ran) == [i for i in range(100) if i != 3]
    assert all(future.done() for future in full)


def test_a_guard_has_bounds(device):
    guarded = onelane.guard(Engine, device, capacity=2)
    note = guarded.note.options(wait=False)
    with ThreadPoolExecutor(2) as pool, Hold(device):
        waiting = [pool.submit(guarded.note, i) for i in range(2)]
        until = time.monotonic() + 30
        while onelane.stats(guarded).calls.waiting < 2:
            assert time.monotonic() < until
            time.sleep(0)
        with pytest.raises(onelane.QueueFull):
            note("too many")

        async def refused():
            with pytest.raises(onelane.QueueFull):
                await note.acall("too many")

        asyncio.run(refused())
    assert sorted(future.result(30)[0] for future in waiting) == [0, 1]
    assert note("fits")[0] == "fits"
    assert "too many" not in guarded.seen()


# --- Terms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["call", "acall", "wait=False", "acall wait=False"])
def test_a_guarded_call_with_a_timeout_ends(device, guarded, how):
    note = guarded.note.options(timeout=0.05, wait="wait=False" not in how)
    with Hold(device), pytest.raises(onelane.DeadlineExceeded):
        asyncio.run(note.acall("late")) if "acall" in how else note("late")
    assert guarded.seen() == []
    assert note.options(timeout=30)("in time")[0] == "in time"


def test_a_guarded_call_that_runs_for_too_long_is_left(device):
    release = threading.Event()
    guarded = onelane.guard(
        lambda: type("Slow", (), {"run": lambda self: release.wait(60)})(), device
    )
    for call in (
        guarded.run.options(timeout=0.05),
        lambda: asyncio.run(guarded.run.options(timeout=0.05).acall()),
    ):
        with pytest.raises(onelane.DeadlineExceeded):
            call()
    release.set()
    assert guarded.run() is True


def test_terms_are_no_arguments_of_the_method(guarded):
    assert guarded.note(1, timeout=3, priority="high") == (1, 3, "high")
    assert guarded.note.options(timeout=30)(1, timeout=4) == (1, 4, None)
    with pytest.raises(ValueError, match="'interactive', 'normal' or 'bulk'"):
        guarded.note.options(priority="high")
    with pytest.raises(TypeError, match="number of seconds"):
        guarded.note.options(timeout="3")


def test_urgent_guarded_calls_go_first(device, guarded):
    async def main():
        with Hold(device):
            tasks = [
                asyncio.ensure_future(guarded.note.options(priority=p).acall(p))
                for p in ("bulk", "normal", "interactive")
            ]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert guarded.seen() == ["interactive", "normal", "bulk"]


def test_a_call_that_waits_for_a_stream_has_a_deadline(guarded):
    stream = guarded.count(3)
    assert next(stream) == 0
    note = guarded.note.options(timeout=0.05)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(onelane.DeadlineExceeded, match="a stream of count"):
            pool.submit(note, 1).result(30)
        with pytest.raises(onelane.DeadlineExceeded, match="a stream of count"):
            pool.submit(lambda: asyncio.run(note.acall(1))).result(30)
    assert list(stream) == [1, 2]
    assert note(2)[0] == 2


def test_a_late_item_of_a_stream_is_not_lost(device, guarded):
    with Hold(device):
        stream = guarded.count.options(timeout=0.05)(2)
        with pytest.raises(onelane.DeadlineExceeded):
            next(stream)

        async def late():
            with pytest.raises(onelane.DeadlineExceeded):
                await anext(stream)

        asyncio.run(late())
    items = []
    while True:
        try:
            items += list(stream)
            break
        except onelane.DeadlineExceeded:
            pass
    assert items == [0, 1]


# --- Many items ---------------------------------------------------------------------------------


def test_many_items_are_fed_in_pieces(device):
    guarded = onelane.guard(Engine, device, batch={"encode": 8})
    texts = [f"text {i}" for i in range(100)]
    wanted = [text + "!" for text in texts]
    assert guarded.encode(texts) == wanted
    assert asyncio.run(guarded.encode.acall(texts)) == wanted
    assert guarded.encode.options(timeout=30)(tuple(texts)) == wanted
    assert max(guarded.sizes) == 8


def test_others_get_their_turn_between_the_pieces(device):
    order = []

    class Slow:
        def encode(self, texts):
            order.append(len(texts))
            return texts

    guarded = onelane.guard(Slow, device, batch={"encode": 8})
    guarded.encode(["learn", "the", "form"])
    order.clear()
    with ThreadPoolExecutor(2) as pool:
        with Hold(device):
            large = pool.submit(guarded.encode, ["x"] * 400)
            queue = onelane._proxy.lane_of(guarded).batched["encode"].queue
            until = time.monotonic() + 30
            while queue.stats().waiting < 2:
                assert time.monotonic() < until
                time.sleep(0)
            small = pool.submit(guarded.encode.options(priority="normal"), "y")
            while queue.stats().waiting < 3:
                assert time.monotonic() < until
                time.sleep(0)
        assert small.result(30) == "y"
        assert large.result(30) == ["x"] * 400
    # It came when two pieces waited, and 48 were still to come. Those made beside it are smaller.
    assert order.index(1) == 2
    assert set(order) <= {1, 2, 6, 8}
    assert sum(order) == 401
    assert len(order) >= 51


def test_what_cannot_be_put_together_runs_whole(device):
    np = pytest.importorskip("numpy")

    class Padded:
        """Rows as long as the longest text of the call."""

        def encode(self, texts):
            rows = np.zeros((len(texts), max(map(len, texts))))
            for row, text in zip(rows, texts, strict=True):
                row[: len(text)] = 1
            return rows

    guarded = onelane.guard(Padded, device, batch={"encode": 4})
    texts = ["x" * (i + 1) for i in range(10)]
    wanted = Padded().encode(texts)
    for _ in range(2):
        assert guarded.encode(texts).tolist() == wanted.tolist()
    same = ["xx"] * 10
    assert guarded.encode(same).tolist() == Padded().encode(same).tolist()


# --- The end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["with", "close", "onelane.close", "async with", "aclose"])
def test_a_guard_is_closed(device, how):
    alive = []

    class Model(Engine):
        def __init__(self):
            super().__init__()
            alive.append(weakref.ref(self))

    guarded = onelane.guard(Model, device, batch={"encode": 4})

    async def enter():
        async with guarded as entered:
            return await entered.encode.acall("a")

    if how == "with":
        with guarded as entered:
            assert entered.encode("a") == "a!"
    elif how == "close":
        guarded.close()
    elif how == "onelane.close":
        assert onelane.close(guarded, timeout=30)
    elif how == "async with":
        assert asyncio.run(enter()) == "a!"
    else:
        assert asyncio.run(onelane.aclose(guarded))
    gc.collect()
    assert alive[0]() is None
    for late in (
        lambda: guarded.note(1),
        lambda: guarded.encode("a"),
        lambda: guarded.ran,
        lambda: asyncio.run(guarded.note.acall(1)),
        lambda: list(guarded.count(1)),
    ):
        with pytest.raises(onelane.QueueClosed):
            late()
    assert onelane.close(guarded)
    assert onelane.health(guarded).state == "closed"
    assert device.call(int) == 0


def test_closing_runs_what_was_accepted_and_says_if_it_took_too_long(device, guarded):
    with ThreadPoolExecutor(1) as pool, Hold(device):
        accepted = pool.submit(guarded.note, "accepted")
        until = time.monotonic() + 30
        while onelane.stats(guarded).calls.waiting < 1:
            assert time.monotonic() < until
            time.sleep(0)
        assert not onelane.close(guarded, timeout=0.05)
        with pytest.raises(onelane.QueueClosed):
            guarded.note("late")
    assert accepted.result(30)[0] == "accepted"
    assert onelane.close(guarded, timeout=30)


def test_an_object_that_can_be_closed_itself(device):
    class File:
        closed = entered = 0

        def close(self):
            File.closed += 1

        def __enter__(self):
            File.entered += 1
            return "inside"

        def __exit__(self, *error):
            self.close()

    guarded = onelane.guard(File, device)
    guarded.close()
    with guarded as inside:
        assert inside == "inside"
    assert (File.closed, File.entered) == (2, 1)
    assert onelane.close(guarded)
    with pytest.raises(TypeError, match="guard\\(\\) returned"):
        onelane.close(3)


def test_statistics_and_health_of_a_guard(device, guarded):
    for i in range(5):
        guarded.note(i)
    assert onelane.stats(guarded).calls.completed == 5
    assert onelane.health(guarded).state == "ready"
