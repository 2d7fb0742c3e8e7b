"""`QueueModel` as KServe uses it, without a server."""

import asyncio
import pickle

import numpy
import pytest
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import InferInput, InferRequest

import onelane
from onelane.kserve import CallFailed, QueueModel


def request(*arrays, datatype="FP64", from_grpc=False):
    inputs = [
        InferInput(f"x{i}", [len(array)], datatype, data=list(array))
        for i, array in enumerate(arrays)
    ]
    return InferRequest("m", inputs, from_grpc=from_grpc)


def ask(model, *arrays, **more):
    response = asyncio.run(model.predict(request(*arrays, **more)))
    return [output.as_numpy().tolist() for output in response.outputs]


def loaded(run, **settings):
    model = QueueModel("m", run, requests=onelane.Items(), device="cpu", factory=False, **settings)
    assert model.load()
    return model


def test_loading_twice_makes_one_queue():
    made = []

    class Model:
        def __init__(self):
            made.append(self)

        def __call__(self, items):
            return items

    model = QueueModel("m", Model, requests=onelane.Items(), device="cpu")
    assert not asyncio.run(model.healthy())
    assert model.load()
    assert model.load()
    asyncio.run(model.start_engine())
    assert len(made) == 1
    model.stop()


def test_a_model_that_is_lost_is_ready_for_as_long_as_is_said_and_then_is_not():
    class Gone:
        built = 0

        def __init__(self):
            Gone.built += 1
            if Gone.built > 1:
                raise OSError("gone for good")

        def __call__(self, items):
            raise onelane.EngineLost("the device is gone")

    for rebuild_s, is_ready in ((3600.0, True), (0.0, False)):
        Gone.built = 0
        model = QueueModel("m", Gone, requests=onelane.Items(), device="cpu", rebuild_s=rebuild_s)
        assert model.load()
        with pytest.raises(CallFailed) as failed:
            ask(model, [1.0])
        assert failed.value.status in (500, 503)
        assert model.queue.health().state == "rebuilding"
        assert asyncio.run(model.healthy()) is is_ready
        model.queue.shutdown(cancel_futures=True)
        assert not asyncio.run(model.healthy())


def test_a_stopped_model_is_not_ready_and_says_so():
    model = loaded(lambda items: items)
    model.stop()
    assert not model.ready
    assert not model.load()
    with pytest.raises(CallFailed, match="m is not ready: closed") as failed:
        ask(model, [1.0])
    assert failed.value.status == 503


def test_a_model_that_is_stopped_before_it_loads_never_loads():
    def load():
        raise AssertionError("it was stopped")

    model = QueueModel("m", load, factory=True, device="cpu")
    model.stop()
    assert not model.load()
    with pytest.raises(onelane.QueueClosed):
        model.queue.stats()


def test_what_the_model_raises_of_kserves_own_goes_on_as_it_is():
    def refuse(items):
        raise InvalidInput("not that one")

    model = loaded(refuse)
    with pytest.raises(InvalidInput, match="not that one"):
        ask(model, [1.0])
    model.stop()


def test_rows_of_several_inputs_are_dicts():
    model = loaded(lambda items: [item["x0"] + item["x1"] for item in items])
    assert ask(model, [1.0, 2.0], [10.0, 20.0]) == [[11, 22]]
    with pytest.raises(InvalidInput, match=r"x0: \(1,\), x1: \(2,\)"):
        ask(model, [1.0], [10.0, 20.0])
    model.stop()


def test_a_tuple_is_several_outputs_and_texts_are_bytes():
    model = loaded(lambda items: [(item, item.upper()) for item in items])
    words = [b"one", b"zw\xc3\xb6lf"]
    assert ask(model, words, datatype="BYTES") == [["one", "zwölf"], ["ONE", "ZWÖLF"]]
    with pytest.raises(InvalidInput, match="input 'x0' cannot be read"):
        ask(model, [b"\xff"], datatype="BYTES")
    model.stop()
    model = loaded(lambda items: [item + b"!" for item in items], encoding=None)
    assert ask(model, [b"\xff", "text"], datatype="BYTES") == [[b"\xff!", b"text!"]]
    model.stop()


def test_rows_that_do_not_fit_together_are_the_models_fault():
    model = loaded(lambda items: [numpy.zeros(int(item)) for item in items])
    with pytest.raises(CallFailed, match="NotBatchable: the output 'output-0'") as failed:
        ask(model, [1.0, 2.0])
    assert failed.value.status == 500
    model.stop()
    model = loaded(lambda items: [1j for _ in items])
    with pytest.raises(CallFailed, match="complex128"):
        ask(model, [1.0])
    model.stop()


def test_bfloat16_is_sent_as_float32():
    torch = pytest.importorskip("torch")
    model = loaded(lambda items: [torch.ones(2, dtype=torch.bfloat16) for _ in items])
    response = asyncio.run(model.predict(request([1.0])))
    assert response.outputs[0].datatype == "FP32"
    model.stop()


def test_it_does_not_go_to_another_process():
    model = QueueModel("m", print, device="cpu", factory=False)
    with pytest.raises(TypeError, match="workers=1"):
        pickle.dumps(model)
