"""Patch 035: the values stay the same, bit for bit, and the tool never half-applies it."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from onelane import patch035
from onelane.patch035 import __main__ as command
from onelane.patch035 import installed, runtime, target, unified_diff
from onelane.patch035.installed import InstalledTorch
from onelane.patch035.target import State

REPOSITORY = Path(__file__).resolve().parent.parent
PATCH = REPOSITORY / "patches" / target.PATCH_FILE.name
REAL = Path(torch.__file__).parent
needs_patch = pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")

# --- The patched branch, on the CPU -----------------------------------------------------------


class ReportsMps(torch.Tensor):
    """A CPU tensor that says `is_mps`, and so takes the branch that patch 035 adds.

    Every operation is carried out by the plain tensor inside and is written down in `calls`.
    """

    is_mps = True
    inner: Tensor
    calls: list[str] = []  # noqa: RUF012 - shared by all, emptied by each test
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> ReportsMps:
        made: ReportsMps = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=requires_grad,
        )
        return made

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(func.overloadpacket.__name__)
        args, kwargs = tree_map_only(cls, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


def plain(x: Any) -> Tensor:
    return x.inner if isinstance(x, ReportsMps) else x


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    ReportsMps.calls.clear()
    yield
    assert not patch035.is_enabled(), "a test left patch 035 enabled"


Projection = Callable[..., Sequence[Tensor]]


@pytest.fixture
def functions() -> tuple[Projection, Projection]:
    """torch's own function and the patched one, as `enable` installs it."""
    original = F._in_projection_packed
    with patch035.enabled():
        patched = F._in_projection_packed
    assert patched is not original
    return original, patched


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "matrix": lambda: torch.randn(5, 8),
    "length x batch": lambda: torch.randn(5, 3, 8),
    "batch first": lambda: torch.randn(3, 5, 8).transpose(0, 1),
    "four dimensions": lambda: torch.randn(2, 5, 3, 8),
    "one token": lambda: torch.randn(1, 1, 8),
    "no tokens": lambda: torch.randn(0, 3, 8),
    "every other row": lambda: torch.randn(10, 3, 8)[::2],
}


def project(
    function: Projection, q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor | None
) -> tuple[list[Tensor], list[Tensor | None], list[str]]:
    """Outputs, gradients of all inputs, and the operations of the forward pass."""
    wrapped: dict[int, ReportsMps] = {}

    def wrap(x: Tensor) -> ReportsMps:
        return wrapped.setdefault(id(x), ReportsMps(x, requires_grad=True))

    inputs = [wrap(x) for x in (q, k, v, w)] + [None if b is None else wrap(b)]
    ReportsMps.calls.clear()
    outputs = list(function(*inputs))
    calls = list(ReportsMps.calls)
    generator = torch.Generator().manual_seed(1)
    gradients = [
        torch.randn(plain(y).shape, generator=generator).to(y.dtype).mul(0.5) for y in outputs
    ]
    torch.autograd.backward(outputs, [ReportsMps(g) for g in gradients])
    grads = [None if x is None or x.grad is None else plain(x.grad) for x in inputs]
    return [plain(y.detach()) for y in outputs], grads, calls


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("attention", ["self", "encoder-decoder", "three inputs"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_projection_is_bit_equal(
    functions: tuple[Projection, Projection],
    dtype: torch.dtype,
    layout: str,
    attention: str,
    bias: bool,
) -> None:
    torch.manual_seed(0)
    q, k, v = (LAYOUTS[layout]().to(dtype) for _ in range(3))
    w, b = torch.randn(24, 8).to(dtype), torch.randn(24).to(dtype) if bias else None
    if attention == "self":
        k = v = q
    elif attention == "encoder-decoder":
        v = k
    original, patched = functions
    before = project(original, q, k, v, w, b)
    after = project(patched, q, k, v, w, b)

    for old, new in zip(before[0], after[0], strict=True):
        assert torch.equal(old, new)
        assert new.dtype is dtype
        assert new.is_contiguous()
    for old_grad, new_grad in zip(before[1], after[1], strict=True):
        assert (old_grad is None) == (new_grad is None)
        assert old_grad is None or torch.equal(old_grad, plain(new_grad))
    # The packed branches go another way; with three inputs there is nothing to unpack.
    if attention == "three inputs":
        assert before[2] == after[2]
    else:
        assert "transpose" in before[2]
        assert "split" not in before[2][before[2].index("transpose") :]
        assert "split" in after[2]
        assert "transpose" not in after[2]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_single_token_as_a_vector(functions: tuple[Projection, Projection], bias: bool) -> None:
    torch.manual_seed(0)
    w, b = ReportsMps(torch.randn(24, 8)), ReportsMps(torch.randn(24)) if bias else None
    with torch.inference_mode():
        x = ReportsMps(torch.randn(8))
        old, new = (function(x, x, x, w, b) for function in functions)
        assert "split" in ReportsMps.calls or "chunk" in ReportsMps.calls
        assert all(torch.equal(plain(a), plain(b)) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(("attention", "copies"), [("self", 3), ("encoder-decoder", 2)])
def test_each_slice_is_copied_by_itself(
    functions: tuple[Projection, Projection], attention: str, copies: int
) -> None:
    q = torch.randn(5, 3, 8)
    k = q if attention == "self" else torch.randn(5, 3, 8)
    w = torch.randn(24, 8)
    original, patched = functions
    assert project(original, q, k, k, w, None)[2].count("clone") == 1
    assert project(patched, q, k, k, w, None)[2].count("clone") == copies
    inputs = [ReportsMps(q)] * 3 if attention == "self" else [ReportsMps(q), *[ReportsMps(k)] * 2]
    outputs = patched(*inputs, ReportsMps(w), None)
    storages = {plain(y).untyped_storage().data_ptr() for y in outputs}
    assert len(storages) == 3


def test_other_devices_run_what_they_ran(functions: tuple[Projection, Projection]) -> None:
    class SaysNothing(ReportsMps):
        is_mps = False

    x, w = torch.randn(5, 3, 8), torch.randn(24, 8)
    calls = []
    for function in functions:
        ReportsMps.calls.clear()
        wrapped = SaysNothing(x)
        outputs = function(wrapped, wrapped, wrapped, SaysNothing(w), None)
        calls.append(list(ReportsMps.calls))
        assert len({plain(y).untyped_storage().data_ptr() for y in outputs}) == 1
    assert calls[0] == calls[1]
    one, other = (function(x, x, x, w, None) for function in functions)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_tensor_on_a_device_called_mps_meets_the_condition() -> None:
    # Asked of torch's own property, which this class hides.
    tensor = torch.Tensor._make_wrapper_subclass(ReportsMps, (2, 3), device="mps")
    assert torch.Tensor.is_mps.__get__(tensor) is True
    tensor = torch.Tensor._make_wrapper_subclass(ReportsMps, (2, 3), device="cpu")
    assert torch.Tensor.is_mps.__get__(tensor) is False
    assert "is_mps" in target.PATCH_FILE.read_text(encoding="utf-8")


@pytest.fixture
def _no_fast_path() -> Iterator[None]:
    # MPS tensors never take the fast path; the CPU tensors that stand for them must not either.
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(was)


def run_module(
    module: nn.Module, inputs: Sequence[Tensor], **options: Any
) -> tuple[Tensor, list[Tensor], list[str]]:
    """The first output, the gradients of the parameters, and all operations."""
    module.zero_grad()
    ReportsMps.calls.clear()
    wrapped: dict[int, ReportsMps] = {}
    output = module(*(wrapped.setdefault(id(x), ReportsMps(x)) for x in inputs), **options)
    output = output[0] if isinstance(output, tuple) else output
    calls = list(ReportsMps.calls)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(ReportsMps(gradient.to(output.dtype)))
    gradients = [plain(p.grad) for p in module.parameters() if p.grad is not None]
    return plain(output.detach()), gradients, calls


def assert_same_with_patch(module: nn.Module, inputs: Sequence[Tensor], **options: Any) -> None:
    before = run_module(module, inputs, **options)
    with patch035.enabled():
        after = run_module(module, inputs, **options)
    assert torch.equal(before[0], after[0])
    assert before[1], "no parameter has a gradient"
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert before[2] != after[2], "the patched branch was not taken"


@pytest.mark.usefixtures("_no_fast_path")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("memory", [False, True], ids=["self", "encoder-decoder"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "length first"])
def test_multihead_attention(
    batch_first: bool, bias: bool, memory: bool, need_weights: bool, training: bool
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4, bias=bias, batch_first=batch_first).train(training)
    q = torch.randn(3, 7, 32)
    k = torch.randn(3, 5, 32) if memory else q
    if not batch_first:
        q, k = (q.transpose(0, 1).contiguous(), k.transpose(0, 1)) if memory else (q, q)
    assert_same_with_patch(module, [q, k, k], need_weights=need_weights)


@pytest.mark.usefixtures("_no_fast_path")
def test_attention_with_masks_and_in_half_precision() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 32)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    module = nn.MultiheadAttention(32, 4, batch_first=True)
    assert_same_with_patch(module, [x, x, x], key_padding_mask=padding, attn_mask=causal)
    half = nn.MultiheadAttention(32, 4, batch_first=True).to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    assert_same_with_patch(half, [x, x, x])


@pytest.mark.usefixtures("_no_fast_path")
def test_transformer_layers() -> None:
    torch.manual_seed(0)
    x, memory = torch.randn(3, 7, 32), torch.randn(3, 5, 32)
    encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    assert_same_with_patch(encoder, [x])
    decoder = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True).eval()
    assert_same_with_patch(decoder, [x, memory])


@pytest.mark.timeout(300)
def test_the_patched_function_compiles_and_scripts() -> None:
    module = nn.MultiheadAttention(32, 4).eval()
    x = torch.randn(7, 3, 32)
    expected = module(x, x, x)[0]
    with patch035.enabled():
        compiled = torch.compile(F._in_projection_packed, backend="eager", fullgraph=True)
        w = torch.randn(96, 32)
        direct = F._in_projection_packed(x, x, x, w)
        assert all(map(torch.equal, compiled(x, x, x, w), direct))
        whole = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(whole(x, x, x)[0], expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript announces its end
            scripted = torch.jit.script(F._in_projection_packed)
            assert "prim::is_mps" in str(scripted.graph)
            assert all(map(torch.equal, scripted(x, x, x, w), direct))
            script = torch.jit.script(module)
        torch.testing.assert_close(script(x, x, x)[0], expected)


# --- At run time ------------------------------------------------------------------------------


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


# --- On disk ----------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the real files of the installed torch that the tool reads."""
    (tmp_path / "torch" / "nn").mkdir(parents=True)
    shutil.copy(REAL / "nn" / "functional.py", tmp_path / "torch" / "nn" / "functional.py")
    shutil.copy(REAL / "version.py", tmp_path / "torch" / "version.py")
    return tmp_path


def files(site: Path) -> dict[str, bytes]:
    return {str(p.relative_to(site)): p.read_bytes() for p in site.rglob("*") if p.is_file()}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onelane.patch035", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_from_end_to_end(site: Path) -> None:
    before = files(site)
    status = run("status", "--site", site)
    assert (status.returncode, "not applied" in status.stdout) == (1, True)
    assert torch.__version__ in status.stdout
    done = run("apply", "--site", site)
    assert (done.returncode, done.stderr) == (0, "")
    assert run("status", "--site", site).returncode == 0
    report = json.loads(run("status", "--json", "--site", site).stdout)
    assert report["state"] == "patched"
    assert report["version"] == torch.__version__
    assert report["tested_version"] is True
    assert Path(report["backup"]).read_bytes() == before["torch/nn/functional.py"]

    applied = files(site)
    again = run("apply", "--site", site)
    assert (again.returncode, "already" in again.stdout) == (0, True)
    assert files(site) == applied
    assert run("revert", "--site", site).returncode == 0
    assert files(site) == before
    assert run("revert", "--site", site).returncode == 0
    assert files(site) == before


def test_only_the_function_changes(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    before = torch_.functional.read_text(encoding="utf-8")
    assert torch_.apply()
    after = torch_.functional.read_text(encoding="utf-8")
    old, new = target.find_function(before), target.find_function(after)
    assert old is not None
    assert new is not None
    assert before[: old.start] == after[: new.start]
    assert before[old.stop :] == after[new.stop :]
    assert after[new].count("is_mps") == 2


def test_permissions_stay_and_hard_links_keep_their_file(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    torch_.functional.chmod(0o640)
    cached = site / "cache.py"
    os.link(torch_.functional, cached)
    before = cached.read_bytes()
    torch_.apply()
    assert stat.S_IMODE(torch_.functional.stat().st_mode) == 0o640
    assert cached.read_bytes() == before


def test_other_changes_in_the_file_survive_a_revert(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    torch_.apply()
    with torch_.functional.open("a", encoding="utf-8") as file:
        file.write("# a later change\n")
    assert torch_.revert()
    assert torch_.functional.read_bytes().endswith(b"# a later change\n")
    assert torch_.state() is State.UNPATCHED
    assert not torch_.backup.exists()


def test_a_torch_reinstalled_over_the_patch(site: Path) -> None:
    torch_ = InstalledTorch.find(site)
    torch_.apply()
    shutil.copy(REAL / "nn" / "functional.py", torch_.functional)
    with torch_.functional.open("a", encoding="utf-8") as file:
        file.write("# a newer release\n")
    newer = torch_.functional.read_bytes()
    assert torch_.apply()
    assert torch_.backup.read_bytes() == newer, "the backup of the older release was kept"
    shutil.copy(torch_.backup, torch_.functional)
    assert not torch_.revert()
    assert not torch_.backup.exists()
    assert torch_.functional.read_bytes() == newer


def set_version(site: Path, version: str) -> None:
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\n", encoding="utf-8")


def test_an_unknown_version_is_refused(site: Path) -> None:
    set_version(site, "9.9.0")
    before = files(site)
    refused = run("apply", "--site", site)
    assert refused.returncode == 1
    assert "torch 9.9.0" in refused.stderr
    assert "--any-version" in refused.stderr
    assert "onelane.executor" in refused.stderr
    assert files(site) == before
    assert run("apply", "--any-version", "--site", site).returncode == 0
    assert run("revert", "--site", site).returncode == 0
    assert files(site) == before


def rewrite(site: Path, change: Callable[[str], str]) -> None:
    path = site / "torch" / "nn" / "functional.py"
    old = path.read_text(encoding="utf-8")
    new = change(old)
    assert new != old
    path.write_text(new, encoding="utf-8")


def half_patched(text: str) -> str:
    return unified_diff.apply(target.hunks()[:1], text)


UNKNOWN_TEXTS: dict[str, Callable[[str], str]] = {
    "a changed statement": lambda s: s.replace(
        "proj = linear(q, w, b)\n", "proj = linear(q, w, b) * 1\n"
    ),
    "a changed line far from the hunks": lambda s: s.replace(
        "w_q, w_k, w_v = w.chunk(3)\n        if b is None:\n            b_q = b_k = b_v = None",
        "w_q, w_k, w_v = w.chunk(3)\n        if None is b:\n            b_q = b_k = b_v = None",
        1,
    ),
    "half patched": half_patched,
    "no such function": lambda s: s.replace("def _in_projection_packed(", "def _other("),
    "two of them": lambda s: s + "\n\ndef _in_projection_packed(): ...\n",
    "not Python": lambda s: s + "\n)\n",
    "patched, and changed elsewhere": lambda s: unified_diff.apply(target.hunks(), s).replace(
        "w_q, w_k, w_v = w.chunk(3)\n", "w_q, w_k, w_v = w.chunk(3)  # here\n", 1
    ),
    "patched, then changed": lambda s: unified_diff.apply(target.hunks(), s).replace(
        "proj.chunk(3, dim=-1)", "proj.chunk(3, dim=-2)"
    ),
}


@pytest.mark.parametrize("what", UNKNOWN_TEXTS)
def test_a_text_that_is_not_known_is_never_touched(site: Path, what: str) -> None:
    rewrite(site, UNKNOWN_TEXTS[what])
    before = files(site)
    torch_ = InstalledTorch.find(site)
    assert torch_.state() is State.UNKNOWN
    for attempt in (
        torch_.apply,
        lambda: torch_.apply(any_version=True),
        torch_.revert,
    ):
        with pytest.raises(patch035.UnsupportedTorchError, match="Nothing was changed"):
            attempt()
    assert files(site) == before
    result = run("apply", "--site", site)
    assert result.returncode == 1
    assert f"torch {torch.__version__}" in result.stderr
    assert "Reinstall" in result.stderr
    assert run("status", "--site", site).returncode == 1
    assert files(site) == before


@pytest.mark.parametrize("which", ["backup", "file"])
def test_a_write_that_fails_leaves_everything(
    site: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    before = files(site)
    torch_ = InstalledTorch.find(site)
    real, full = os.replace, OSError(28, "No space left on device")

    def replace(source: str, destination: Path) -> None:
        if (destination == torch_.backup) == (which == "backup"):
            raise full
        real(source, destination)

    monkeypatch.setattr(installed.os, "replace", replace)
    with pytest.raises(patch035.WriteError, match="No space left on device"):
        torch_.apply()
    assert files(site) == before


def test_usage_and_missing_torch_are_code_2(tmp_path: Path) -> None:
    for arguments in ([], ["no-such-command"], ["status", "--no-such-flag"]):
        assert run(*arguments).returncode == 2
    missing = run("apply", "--site", tmp_path)
    assert missing.returncode == 2
    assert str(tmp_path / "torch") in missing.stderr
    assert list(tmp_path.iterdir()) == []
    nowhere = subprocess.run(
        [
            sys.executable,
            "-S",
            "-E",
            "-c",
            "import sys; sys.path[:0] = sys.argv[1:2]\n"
            "from onelane.patch035.__main__ import main; sys.exit(main(['status']))",
            str(Path(patch035.__file__).parents[2]),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if str(REAL.parent) != str(Path(patch035.__file__).parents[2]):
        assert nowhere.returncode == 2, nowhere
        assert "no torch" in nowhere.stderr


def test_the_command_does_not_import_torch(site: Path) -> None:
    code = (
        "import sys\nfrom onelane.patch035.__main__ import main\n"
        f"main(['status']); main(['apply', '--site', {str(site)!r}])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


def test_main_without_a_subprocess(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["apply", "--site", str(site)]) == 0
    assert str(site) in capsys.readouterr().out


def test_torch_with_the_patch_on_disk_runs(site: Path) -> None:
    """In a process whose torch.nn.functional is the patched file, enable() adds nothing."""
    InstalledTorch.find(site).apply()
    file = str(InstalledTorch.find(site).functional)
    code = f"""
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch.nn.functional":
            return importlib.util.spec_from_file_location(name, {file!r})
sys.meta_path.insert(0, Finder())
import torch, torch.nn.functional as F
from onelane import patch035
assert "is_mps" in F._in_projection_packed.__code__.co_names
before = F._in_projection_packed
with patch035.enabled():
    assert F._in_projection_packed is before
x = torch.randn(5, 3, 8)
assert torch.nn.MultiheadAttention(8, 2)(x, x, x)[0].shape == x.shape
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


# --- The patch file ---------------------------------------------------------------------------


def other_versions() -> list[Path]:
    """Unpacked torch/nn/functional.py of other releases: folders named by version.

    ONELANE_TORCH_FILES names the folder that holds them; without it only the installed one runs.
    """
    folder = os.environ.get("ONELANE_TORCH_FILES")
    return sorted(Path(folder).iterdir()) if folder else []


def test_the_two_copies_of_the_patch_are_one() -> None:
    assert PATCH.read_bytes() == target.PATCH_FILE.read_bytes()


@needs_patch
@pytest.mark.parametrize("source", [REAL.parent, *other_versions()], ids=lambda p: p.name)
def test_patch_p1_does_what_the_tool_does(tmp_path: Path, source: Path) -> None:
    sites = [tmp_path / "by-patch", tmp_path / "by-tool"]
    for site in sites:
        (site / "torch" / "nn").mkdir(parents=True)
        for name in ("nn/functional.py", "version.py"):
            shutil.copy(source / "torch" / name, site / "torch" / name)
    arguments = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-d", str(sites[0])]
    with PATCH.open("rb") as diff:
        done = subprocess.run(arguments, stdin=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    by_patch, by_tool = map(InstalledTorch.find, sites)
    assert by_tool.apply()
    assert by_patch.functional.read_bytes() == by_tool.functional.read_bytes()
    # What patch(1) applied, without any backup, the tool knows and can undo.
    assert not by_patch.apply()
    assert by_patch.revert()
    original = source / "torch" / "nn" / "functional.py"
    assert by_patch.functional.read_bytes() == original.read_bytes()


def test_strict_diffs() -> None:
    diff = "--- a\n+++ b\n@@ -1,3 +1,3 @@ def f\n one\n-two\n+TWO\n three\n"
    hunks = unified_diff.parse(diff)
    text = "zero\none\ntwo\nthree\n"
    assert unified_diff.apply(hunks, text) == "zero\none\nTWO\nthree\n"
    assert unified_diff.revert(hunks, "zero\none\nTWO\nthree\n") == text
    for bad in ("one\ntwo\n", text + text, "one\r\ntwo\r\nthree\r\n", ""):
        with pytest.raises(unified_diff.DiffDoesNotFit):
            unified_diff.apply(hunks, bad)
    lines = diff.splitlines(keepends=True)
    for cut in itertools.chain([lines[:2]], [lines[:n] for n in range(3, len(lines))]):
        with pytest.raises(ValueError, match="hunk"):
            unified_diff.parse("".join(cut))
    with pytest.raises(ValueError, match="no hunk"):
        unified_diff.parse(diff + "trailing\n")


def test_patch_035_stands_alone() -> None:
    """Patch 035 must work where the rest of onelane cannot: it imports nothing else of it."""
    for path in Path(patch035.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert not name.startswith("onelane") or name.startswith("onelane.patch035"), (
                    f"{path.name} imports {name}"
                )
