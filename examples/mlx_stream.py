"""An MLX stream belongs to the thread that made it; a device executor gives it one.

    pip install onelane "mlx[cpu]"        # or plain mlx on a Mac
    python examples/mlx_stream.py

Since 0.31.2 a stream made on one thread cannot be used on another: a web server that makes its
stream at start-up fails in every request. A lock does not help, because the thread is wrong. Here
the stream is made on the executor's worker, and so is everything that uses it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx

import onelane


def main() -> None:
    """Use one stream from eight threads: directly, then through the executor."""
    # A stream on the CPU, so that this runs anywhere; on a Mac use mx.gpu.
    here = mx.new_stream(mx.cpu)

    def square(stream: mx.Stream, n: int) -> list[float]:
        x = mx.arange(n, dtype=mx.float32)
        y = mx.multiply(x, x, stream=stream)
        mx.eval(y)
        return [float(value) for value in y.tolist()]

    with ThreadPoolExecutor(8) as pool:
        direct = [pool.submit(square, here, n) for n in range(1, 9)]
        errors = {str(future.exception()) for future in direct if future.exception()}
    print(f"direct: {sum(f.exception() is not None for f in direct)} of 8 failed")
    for error in sorted(errors):
        print(f"    {error}")

    device = onelane.executor("mlx")
    stream = device.call(mx.new_stream, mx.cpu)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(device.call, square, stream, n) for n in range(1, 9)]
        right = [f.result() == [i * i for i in range(n)] for n, f in enumerate(futures, 1)]
    print(f"through onelane.executor('mlx'): {sum(right)} of 8 right")


if __name__ == "__main__":
    main()
