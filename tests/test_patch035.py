"""Patch 035: the values stay the same, bit for bit, and it needs nothing else of onelane."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onelane import patch035
from onelane.patch035 import target
from reports_mps import ReportsMps, plain

pytestmark = pytest.mark.usefixtures("_patch035_is_left_disabled")


@pytest.fixture(autouse=True)
def _clean() -> None:
    ReportsMps.calls.clear()


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
