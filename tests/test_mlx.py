"""MLX streams belong to a thread; the executor is that thread."""

from __future__ import annotations

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import onelane

mx = pytest.importorskip("mlx.core", reason='MLX is not installed: pip install "mlx[cpu]"')

pytestmark = pytest.mark.timeout(60)


def double(stream, n):
    y = mx.add(mx.ones(n), mx.ones(n), stream=stream)
    mx.eval(y)
    return y.tolist()


def test_a_stream_fails_on_other_threads_and_works_through_the_executor():
    stream = mx.new_stream(mx.cpu)
    assert double(stream, 2) == [2, 2]
    with ThreadPoolExecutor(4) as pool:
        direct = [pool.submit(double, stream, n) for n in range(1, 9)]
        assert all("in current thread" in str(f.exception(30)) for f in direct)

    device = onelane.executor("mlx")
    stream = device.call(mx.new_stream, mx.cpu)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(device.call, double, stream, n) for n in range(1, 50)]
        assert [f.result(30) for f in futures] == [[2] * n for n in range(1, 50)]


def test_a_model_with_its_stream_behind_a_list_queue():
    class Model:
        def __init__(self):
            self.stream = mx.new_stream(mx.cpu)

        def __call__(self, xs):
            y = mx.multiply(mx.array(xs), 2, stream=self.stream)
            mx.eval(y)
            return y.tolist()

    queue = onelane.BatchQueue.from_factory(Model, "mlx", requests=onelane.Items())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(queue, range(100))) == [2 * i for i in range(100)]


def test_the_example(capsys):
    example = Path(__file__).parents[1] / "examples" / "mlx_stream.py"
    runpy.run_path(str(example), run_name="__main__")
    out = capsys.readouterr().out
    assert "direct: 8 of 8 failed" in out
    assert "8 of 8 right" in out
