"""The simulated MPS device of onelane, for the scripts: `--device sim-mps[:PROFILE]`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PREFIX = "sim-mps"

# Makes the calling thread member `index` of a party, for the length of a with block.
Member = Callable[[int], contextlib.AbstractContextManager[None]]


class Simulated(NamedTuple):
    """Which simulated device is asked for."""

    profile: str
    seed: int

    @classmethod
    def parse(cls, name: str, seed: int) -> Simulated | None:
        """What `sim-mps[:PROFILE]` says; None if it is another device's name.

        Raises ValueError if the device cannot be had.
        """
        kind, _, profile = name.partition(":")
        if kind != PREFIX:
            return None
        try:
            sim: Any = importlib.import_module("onelane.sim")
        except ImportError as error:
            raise ValueError(
                f"--device {PREFIX} needs onelane ({error}). Install it from the root of its "
                "repository with `pip install .`"
            ) from error
        profile = profile or "fork-2.9.1"
        if profile not in sim.profiles():
            known = ", ".join(sim.profiles())
            raise ValueError(f"there is no profile {profile!r} of {PREFIX}; there are {known}")
        return cls(profile, seed)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """A fresh device that stands in for mps. Raises ValueError if it cannot be had."""
        sim: Any = importlib.import_module("onelane.sim")
        try:
            device = sim.device(self.profile, self.seed).__enter__()
        except sim.SimUnavailable as error:
            raise ValueError(str(error)) from error
        try:
            yield device
        finally:
            device.__exit__()

    @property
    def note(self) -> str:
        """What a reader should know."""
        return (
            f"everything here is simulated: profile {self.profile}, seed {self.seed}; "
            "see docs/simulated-device.md"
        )


@contextlib.contextmanager
def patch_035(wanted: bool) -> Iterator[None]:
    """Patch 035 at run time, if wanted. Raises ValueError if it cannot be had."""
    if not wanted:
        yield
        return
    try:
        patch035: Any = importlib.import_module("onelane.patch035")
    except ImportError as error:
        raise ValueError(f"--patch035 needs onelane ({error}): run `pip install .`") from error
    try:
        patch035.enable()
    except patch035.Patch035Error as error:
        raise ValueError(str(error)) from error
    try:
        yield
    finally:
        patch035.disable()
