"""Patch 035 at run time: enabling nests, restores, and leaves other people's functions alone."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onelane import patch035
from onelane.patch035 import runtime, target
from onelane.patch035.target import State

pytestmark = pytest.mark.usefixtures("_patch035_is_left_disabled")


def test_enable_nests_and_restores() -> None:
    original = F._in_projection_packed
    patch035.enable()
    patched = F._in_projection_packed
    with patch035.enabled():
        assert F._in_projection_packed is patched
    assert F._in_projection_packed is patched
    assert patch035.is_enabled()
    patch035.disable()
    assert F._in_projection_packed is original
    assert not patch035.is_enabled()
    with pytest.raises(RuntimeError, match="without an enable"):
        patch035.disable()


def test_an_exception_in_the_block_restores() -> None:
    original = F._in_projection_packed
    with pytest.raises(KeyError), patch035.enabled():
        raise KeyError
    assert F._in_projection_packed is original


def test_threads_that_enable_at_once_leave_nothing_behind() -> None:
    original = F._in_projection_packed
    threads, rounds = 8, 100
    meeting = threading.Barrier(threads, timeout=60)
    faults: list[str] = []

    def work() -> None:
        for _ in range(rounds):
            meeting.wait()
            with patch035.enabled():
                if F._in_projection_packed is original:
                    faults.append("the patch was off inside its own block")
            meeting.wait()
            if F._in_projection_packed is not original:
                faults.append("the patch was on outside every block")

    crew = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(100)
        assert not thread.is_alive()
    assert faults == []


def test_a_function_replaced_by_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor | None = None) -> Any:
        return q, k, v

    for replacement in (theirs, "not even a function"):
        monkeypatch.setattr(F, "_in_projection_packed", replacement)
        with pytest.raises(patch035.UnsupportedTorchError, match=torch.__version__.split("+")[0]):
            patch035.enable()
        assert F._in_projection_packed is replacement


def test_a_function_replaced_meanwhile_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "_in_projection_packed", F._in_projection_packed)  # restored at the end
    patch035.enable()
    theirs = SimpleNamespace()
    F._in_projection_packed = theirs
    with pytest.warns(RuntimeWarning, match="replaced by other code"):
        patch035.disable()
    assert F._in_projection_packed is theirs


def test_an_unknown_version_is_refused_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    original = F._in_projection_packed
    with pytest.raises(patch035.UnsupportedTorchError, match=r"9\.9\.0.*any_version"):
        patch035.enable()
    assert F._in_projection_packed is original
    with patch035.enabled(any_version=True):
        assert F._in_projection_packed is not original


def test_what_runs_counts_not_what_the_file_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was patched after this process had imported torch."""
    original = F._in_projection_packed
    patched_text = target.patched(runtime.inspect.getsource(original))
    monkeypatch.setattr(runtime.inspect, "getsource", lambda _: patched_text)
    with patch035.enabled():
        assert F._in_projection_packed is not original
    # And the other way round: patched code is running already.
    function = runtime._define(patched_text, F)
    monkeypatch.setattr(F, "_in_projection_packed", function)
    with patch035.enabled():
        assert F._in_projection_packed is function


def test_the_source_of_the_swapped_function_can_be_read() -> None:
    with patch035.enabled():
        text = runtime.inspect.getsource(F._in_projection_packed)
    assert target.state_of(text) is State.PATCHED
