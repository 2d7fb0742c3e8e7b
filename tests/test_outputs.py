"""What comes out: results own their memory at any depth, and nothing of the worker's with them."""

from __future__ import annotations

import array
import asyncio
import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import gc
import pathlib
import pickle
import threading
import traceback
import types
import uuid
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import onelane
from common import Hold

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

pytestmark = pytest.mark.timeout(90)


class Colour(enum.Enum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Record:
    part: object
    hidden: object = dataclasses.field(init=False, default=None)


class Slotted:
    __slots__ = ("__private", "part")

    def __init__(self, part):
        self.part = part
        self.__private = part


class Bag:
    def __init__(self, part):
        self.part = part


def parts_of(value):
    """The one tensor or array in a structure."""
    if (
        isinstance(value, (torch.Tensor, np.ndarray))
        and getattr(value.dtype, "hasobject", False) is False
    ):
        return [value]
    if isinstance(value, (bytearray, array.array, memoryview)):
        return [np.frombuffer(value, np.float32)]
    if isinstance(value, np.ndarray):
        return [p for part in value.ravel() for p in parts_of(part)]
    if isinstance(value, collections.abc.Mapping):
        return [p for part in value.values() for p in parts_of(part)]
    if isinstance(value, (list, tuple, set, collections.deque)):
        return [p for part in value for p in parts_of(part)]
    state = [getattr(value, n) for n in ("part", "hidden") if hasattr(value, n)]
    return [p for part in state if part is not None for p in parts_of(part)]


def boxed(part):
    box = np.empty(1, dtype=object)
    box[0] = part
    return box


def late(part):
    record = Record(None)
    record.hidden = part
    return record


WRAPS = {
    "alone": lambda part: part,
    "list": lambda part: [part],
    "tuples": lambda part: ((part,),),
    "named": lambda part: Point(part, 1),
    "dict": lambda part: {"a": {"b": part}},
    "defaultdict": lambda part: collections.defaultdict(list, a=part),
    "ordered": lambda part: collections.OrderedDict(a=part),
    "user dict": lambda part: collections.UserDict(a=part),
    "deque": lambda part: collections.deque([part]),
    "dataclass": lambda part: Record([part]),
    "dataclass, not by init": late,
    "namespace": lambda part: types.SimpleNamespace(part=part),
    "object array": boxed,
    "proxy of a dict": lambda part: types.MappingProxyType({"a": part}),
}


def fronts(device, function):
    """The ways in which `function(x)` gives its result to a caller."""
    guarded = onelane.guard(lambda: types.SimpleNamespace(run=function), device)
    single = onelane.BatchQueue(function, device, requests=onelane.Each(), factory=False)
    lists = onelane.BatchQueue(
        lambda xs: [function(x) for x in xs], device, requests=onelane.Items()
    )

    class Encoder:
        def encode(self, xs):
            return [function(x) for x in xs]

    batched = onelane.guard(Encoder, device, batch={"encode": 4})
    return {
        "guard": lambda: guarded.run(1),
        "single": lambda: single(1),
        "list": lambda: lists(1),
        "batched": lambda: batched.encode(1),
        "call": lambda: device.call(device.host_results(function), 1),
        "submit": lambda: device.submit(device.host_results(function), 1).result(30),
        "acall": lambda: asyncio.run(device.acall(device.host_results(function), 1)),
    }


FRONTS = ("guard", "single", "list", "batched", "call", "submit", "acall")


@pytest.mark.parametrize("memory", ["tensor", "view", "array", "bytearray", "memoryview"])
@pytest.mark.parametrize("front", FRONTS)
def test_a_result_shares_no_memory_with_the_model(device, front, memory):
    for wrap in WRAPS.values():
        check_memory(device, front, memory, wrap)


def check_memory(device, front, memory, wrap):
    base = torch.zeros(4)
    raw = bytearray(16)
    given = {
        "tensor": base, "view": base[1:3], "array": base.numpy()[1:], "bytearray": raw,
        "memoryview": memoryview(raw),
    }[memory]  # fmt: skip
    result = fronts(device, lambda x: wrap(given))[front]()
    assert type(result) is type(wrap(given))
    (part,) = parts_of(result)
    assert len(part) == len(parts_of(wrap(given))[0])
    base.fill_(7)
    raw[:] = b"\7" * 16
    assert not np.asarray(part).any()


@pytest.mark.parametrize("front", ["single", "list"])
@pytest.mark.parametrize("wrap", [Bag, Slotted])
def test_objects_that_hold_memory_leave_as_copies(device, front, wrap):
    base = torch.zeros(4)
    result = fronts(device, lambda x: [wrap({"a": base.numpy()})])[front]()
    assert type(result[0]) is wrap
    base.fill_(7)
    assert not result[0].part["a"].any()


def test_modules_and_iterators_in_results_stay_on_the_worker(device):
    worker = device.call(threading.get_ident)
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, x):
            seen.append(threading.get_ident())
            return super().forward(x)

    for name in FRONTS:
        result = fronts(device, lambda x: {"net": Net(2, 2), "items": iter([torch.ones(1)])})[
            name
        ]()
        assert result["net"](torch.ones(1, 2)).shape == (1, 2)
        assert [float(item) for item in result["items"]] == [1.0]
    assert set(seen) == {worker}


PLAIN = [
    datetime.datetime(2026, 1, 1), datetime.date(2026, 1, 1), datetime.timedelta(3),
    datetime.timezone.utc, decimal.Decimal("1.5"), fractions.Fraction(1, 2), uuid.UUID(int=1),
    pathlib.Path("a"), Colour.RED, ..., range(3), Point(1, 2), collections.Counter("aab"),
    collections.deque([1], 3), {1, 2}, frozenset({1}), b"a", np.float32(1.5), np.dtype("f4"),
    torch.float16, torch.device("cpu"), torch.Size([1]), len, dict, types.SimpleNamespace(a=1),
    array.array("d", [1]), Record(1),
]  # fmt: skip


@pytest.mark.parametrize("front", FRONTS)
def test_plain_values_are_themselves(device, front):
    results = fronts(device, lambda x: {"a": PLAIN})[front]()["a"]
    for result, value in zip(results, PLAIN, strict=True):
        assert type(result) is type(value)
        assert result == value
        assert pickle.loads(pickle.dumps(result)) == value


def test_views_of_dicts_and_buffers(device):
    guarded = onelane.guard(lambda: {"a": torch.ones(1)}, device)
    assert list(guarded.keys()) == ["a"]
    assert float(next(iter(guarded.values()))) == 1
    assert device.call(device.host_results(lambda: memoryview(b"abc"))) == b"abc"


def test_images_are_images_of_their_own(device):
    image = pytest.importorskip("PIL.Image")
    base = image.new("RGB", (4, 4), "red")
    for name in FRONTS:
        result = fronts(device, lambda x: [base])[name]()[0]
        assert isinstance(result, image.Image)
        assert result is not base
        assert result.getpixel((0, 0)) == (255, 0, 0)


def test_a_text_that_holds_a_tensor_is_not_plain(device):
    class Labelled(str):
        pass

    text = Labelled("a")
    text.tensor = torch.zeros(2)
    result = fronts(device, lambda x: text)["single"]()
    text.tensor.fill_(1)
    assert result == "a"
    assert not result.tensor.any()


def test_caches_of_a_model_are_copies_or_proxies(device):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.ones(1, 3, dtype=torch.long)
    guarded = onelane.guard(lambda: model, device)
    first = guarded(input_ids=ids)
    assert type(first.logits) is torch.Tensor
    assert issubclass(type(first.past_key_values), onelane._guard.Guarded)
    again = guarded(input_ids=ids[:, :1], past_key_values=first.past_key_values)
    assert again.logits.shape == (1, 1, 10)
    assert first.past_key_values.get_seq_length() == 4
    single = onelane.BatchQueue(model, device, requests=onelane.Each())
    assert single(input_ids=ids).past_key_values.get_seq_length() == 3


# Exceptions


class Odd(Exception):
    """Its constructor does not take what it keeps."""

    def __init__(self, name, tensor):
        super().__init__(f"no {name}")
        self.name, self.tensor = name, tensor


def failing(kind):
    def inner(x):
        hidden = torch.ones(3)
        refs.append(weakref.ref(hidden))
        raise {
            "odd": lambda: Odd("name", hidden),
            "args": lambda: ValueError("text", hidden),
            "os": lambda: FileNotFoundError(2, "gone", "path"),
            "group": lambda: LookupError("deep"),
        }[kind]()

    refs = []

    def function(x):
        local = torch.ones(2)
        refs.append(weakref.ref(local))
        try:
            return inner(x)
        except LookupError as error:
            raise RuntimeError("outer") from error

    function.refs = refs
    return function


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("kind", ["odd", "args", "os", "group"])
def test_an_exception_keeps_its_lines_and_no_frame_of_the_worker(device, front, kind):
    function = failing(kind)
    with pytest.raises(Exception, match="name|text|gone|outer") as caught:
        fronts(device, function)[front]()
    error = caught.value
    gc.collect()
    assert all(ref() is None for ref in function.refs)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert "function" in names
    text = "".join(traceback.format_exception(error))
    assert "return inner(x)" in text
    assert "hidden = torch.ones(3)" not in text
    if kind == "odd":
        assert type(error) is Odd
        assert str(error) == "no name"
        assert error.tensor.tolist() == [1, 1, 1]
    if kind == "args":
        assert error.args[1].tolist() == [1, 1, 1]
    if kind == "os":
        assert (error.errno, error.filename) == (2, "path")
    if kind == "group":
        assert str(error.__cause__) == "deep"
        assert "inner" in text
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename != __file__:
            assert not any(isinstance(v, torch.nn.Module) for v in frame.f_locals.values())


@pytest.mark.parametrize("raised", [Odd("name", 1), OSError(2, "gone", "path"), KeyError("k")])
def test_each_caller_of_a_failed_batch_has_an_exception_of_its_own(device, raised):
    def model(x):
        raise raised

    queue = onelane.BatchQueue(model, device, idempotent=False)
    barrier = threading.Barrier(4)

    def ask(who):
        try:
            queue(torch.ones(1, 2))
        except Exception as error:
            barrier.wait(30)
            callers = [
                frame.f_locals["who"]
                for frame, _ in traceback.walk_tb(error.__traceback__)
                if frame.f_code.co_name == "ask"
            ]
            return error, callers

    with ThreadPoolExecutor(4) as pool:
        with Hold(device):
            asked = [pool.submit(ask, f"user{i}") for i in range(4)]
            while queue.stats().waiting < 4:
                pass
        answers = [one.result(30) for one in asked]
    assert queue.stats().batches == 1
    assert len({id(error) for error, _ in answers}) == 4
    for i, (error, callers) in enumerate(answers):
        assert callers == [f"user{i}"]
        assert type(error) is type(raised)
        assert str(error) == str(raised)
        assert vars(error) == vars(raised)
        assert getattr(error, "errno", None) == getattr(raised, "errno", None)
        assert "model" in [f.name for f in traceback.extract_tb(error.__traceback__)]


def test_an_attribute_error_does_not_bring_the_model(device):
    class Model:
        def encode(self, x):
            return self.encod

    guarded = onelane.guard(Model, device)
    with pytest.raises(AttributeError, match="encod") as caught:
        guarded.encode(1)
    assert caught.value.obj is Model


# Garbage


def test_garbage_of_a_batch_is_collected_on_the_worker_of_a_device_that_needs_it():
    class Node:
        def __init__(self):
            self.me = self

        def __del__(self):
            where.append(threading.get_ident())

    where = []

    def model(x):
        Node()
        return x

    gc.collect()
    gc.disable()
    try:
        with onelane.DeviceExecutor("mps") as device:
            worker = device.call(threading.get_ident)
            device.call(model, 1)
            queue = onelane.BatchQueue(
                lambda xs: [model(x) for x in xs], device, requests=onelane.Items(output="device")
            )
            queue(1)
            assert where == [worker] * 2
    finally:
        gc.enable()


# Proxies


class Score:
    def __init__(self, score):
        self.score = score

    def __lt__(self, other):
        return self.score < other.score

    def __eq__(self, other):
        return self.score == other.score

    def __hash__(self):
        return hash(self.score)

    def __add__(self, other):
        return self.score + other

    def __radd__(self, other):
        return self.score + other

    def __float__(self):
        return self.score


def test_proxies_are_compared_sorted_and_added_as_their_objects(device):
    guarded = onelane.guard(lambda: [Score(0.5), Score(0.2)], device)
    scores = list(guarded)
    assert [s.score for s in sorted(scores)] == [0.2, 0.5]
    assert scores[0] == Score(0.5) != scores[1]
    assert hash(scores[0]) == hash(0.5)
    assert scores[0] + 1 == 1 + scores[0] == 1.5
    assert float(max(scores)) == 0.5
    with pytest.raises(TypeError):
        scores[0] - 1
    with pytest.raises(TypeError):
        len(scores[0])
    twice = onelane.guard(lambda: types.SimpleNamespace(net=torch.nn.Linear(1, 1)), device)
    assert twice.net == twice.net
    assert len({twice.net, twice.net}) == 1
    assert copy.deepcopy({"net": twice.net})["net"] != twice.net
