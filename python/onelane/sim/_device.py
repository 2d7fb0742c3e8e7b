"""The simulated device as a program sees it: seed, schedule, threads, trace, counters."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onelane import _onelane
from onelane.sim import _current
from onelane.sim.errors import SimError

T = TypeVar("T")

_switching = threading.Lock()


def profiles() -> tuple[str, ...]:
    """Return the names of the profiles: which rules hold on a simulated device."""
    return tuple(_onelane.sim_profiles())


def active() -> Device | None:
    """Return the simulated device that stands in for `mps` now, or None."""
    present = _current.present()
    return present if isinstance(present, Device) else None


class Device:
    """A simulated MPS device. Made by `onelane.sim.device` and `onelane.sim.install`.

    In a `with` block it stands in for PyTorch's `mps`. One device can do so at a time.

    profile: which rules hold, one of `profiles()`.
    seed: of the schedule. Equal seeds give equal runs while all threads that use the device are
        members of a party, or only one thread uses it at a time.
    schedule: `"random"`, or `"pct"` (probabilistic concurrency testing, of depth `depth`).
    trace: record every event, for `trace()`.
    hang_after_s: how long blocked threads wait for one that does something else.
    reuse, streams, thread_cache: change a rule of the profile: to whom a freed block is given
        (`"shared"`, `"per_stream"`, `"retain"`), streams (`"shared"`, `"per_thread"`), and whether
        each thread caches small blocks.
    real_faults: what kills or holds the simulated process does so to this one: an abort writes
        its text to stderr and aborts, a hang never returns, and each graph in the cache holds its
        bytes of memory. For tests of what contains them, in a child process.
    """

    def __init__(
        self,
        profile: str = "fork-2.9.1",
        seed: int = 0,
        schedule: str = "random",
        *,
        depth: int = 3,
        trace: bool = False,
        hang_after_s: float = 60.0,
        reuse: str | None = None,
        streams: str | None = None,
        thread_cache: bool = True,
        real_faults: bool = False,
    ) -> None:
        settings = {
            "profile": profile, "seed": seed, "schedule": schedule, "depth": depth, "trace": trace,
            "hang_after": hang_after_s, "reuse": reuse, "streams": streams,
            "thread_cache": thread_cache, "real_faults": real_faults,
        }  # fmt: skip
        self.profile, self.seed, self.schedule = profile, seed, schedule
        self.native = _onelane.SimDevice(settings)
        self._draws = random.Random(seed)

    # --- Standing in for mps ------------------------------------------------------------------

    def __enter__(self) -> Device:
        from onelane.sim import _install

        _install.prepare()
        with _switching:
            present = _current.present()
            if present is not None:
                raise SimError(f"{present!r} stands in for mps already: leave it first")
            _install.switch_on()
            _current.put(self)
        return self

    def __exit__(self, *error: object) -> None:
        from onelane.sim import _install

        with _switching:
            if _current.present() is self:
                _current.put(None)
                _install.switch_off()

    # --- The device ---------------------------------------------------------------------------

    def synchronise(self) -> None:
        """Commit what is pending and wait for it, as `torch.mps.synchronize()` does."""
        self.native.synchronise()

    def commit(self) -> None:
        """Commit what is pending on the calling thread's stream."""
        self.native.commit()

    def empty_cache(self) -> None:
        """Empty the graph cache, as `torch.mps.empty_cache()` does."""
        self.native.empty_cache()

    def stats(self) -> dict[str, int]:
        """Return the counters; bytes are simulated device memory.

        `stale_reads` counts commands that read what another stream had overwritten, the hazard.
        """
        stats: dict[str, int] = json.loads(self.native.stats())
        return stats

    def trace(self) -> dict[str, Any]:
        """Return the events in Chrome's trace format (`json.dump` it, open it in Perfetto)."""
        trace: dict[str, Any] = json.loads(self.native.trace())
        return trace

    def failure(self) -> str | None:
        """Return why the simulated process has ended, if it has: an abort or a hang."""
        return self.native.failure()

    def own(self, check: str = "record") -> None:
        """Make the calling thread an owner; actions of others count as violations from now on.

        check: `"record"`, or `"assert"`: they raise `AffinityViolation`.
        """
        self.native.own(check)

    def violations(self) -> list[dict[str, Any]]:
        """Return the actions of threads that are not owners, once per thread and operation."""
        names = ("thread", "owner", "kind", "operation", "step")
        return [dict(zip(names, row, strict=True)) for row in self.native.violations()]

    def manual_seed(self, seed: int) -> None:
        """Set the seed of random numbers on the device, as `torch.mps.manual_seed` does."""
        self._draws = random.Random(seed)

    def next_seed(self) -> int:
        """Take a seed for one operator that draws."""
        return self._draws.getrandbits(63)

    # --- Threads ------------------------------------------------------------------------------

    def run(self, *functions: Callable[[], T], names: Sequence[str] | None = None) -> list[T]:
        """Run functions in threads that start together, in the order that the seed gives.

        Returns what they return, or raises what the first of them raised, after all have ended.
        Between its calls on the device a thread is the only one that runs: it may wait for another
        of them with `barrier`, `lock` or in `outside`, and with nothing else.
        """
        party = self.party(len(functions), names)
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}

        def live(index: int) -> None:
            try:
                with party.member(index):
                    results[index] = functions[index]()
            except BaseException as error:
                errors[index] = error

        threads = [
            threading.Thread(target=live, args=(index,), name=name)
            for index, name in enumerate(party.names)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[min(errors)]
        return [results[index] for index in range(len(functions))]

    def party(self, members: int, names: Sequence[str] | None = None) -> Party:
        """Return a party of so many threads: none runs before all have come.

        Each joins with `with party.member(index):`.
        """
        return Party(self, list(names) if names else [f"t{at}" for at in range(members)])

    def barrier(self, threads: int) -> _onelane.SimBarrier:
        """Return a barrier for members of a party; `wait()` is known to the schedule."""
        return self.native.barrier(threads)

    def lock(self, name: str = "lock") -> _onelane.SimLock:
        """Return a lock; `run(function)` calls it with the lock held, and returns its result."""
        return self.native.lock(name)

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Let the others go on while the calling member of a party waits for something real.

        When it comes back is the system's choice, so what follows no longer depends on the seed
        alone.
        """
        self.native.go_outside()
        try:
            yield
        finally:
            self.native.come_back()

    def __repr__(self) -> str:
        return f"<simulated mps device, profile {self.profile}, seed {self.seed}>"


class Party:
    """Threads that begin together on a simulated device. Made by `Device.party`."""

    def __init__(self, device: Device, names: list[str]) -> None:
        self.names = names
        self._native = device.native.party(names)

    @contextlib.contextmanager
    def member(self, index: int) -> Iterator[None]:
        """Be member `index` for the length of a with block; waits until all have come.

        Device tensors that only this thread has should be gone by the end of the block.
        """
        self._native.join(index)
        try:
            yield
        finally:
            self._native.leave()
