# Owner(s): ["module: mps"]
"""at::mps::MPSBatchQueue: eight threads through one worker give what one thread gives alone.

Needs libonelane where the loader looks, or named by ONELANE_LIBRARY.
"""

import ctypes
import os
import sys
import unittest

import torch
from torch.testing._internal.common_utils import TestCase, run_tests

LIBRARY = os.environ.get(
    "ONELANE_LIBRARY", "libonelane.1.dylib" if sys.platform == "darwin" else "libonelane.so.1"
)

SOURCE = """
#include <ATen/Functions.h>
#include <ATen/mps/MPSBatchQueue.h>

#include <thread>

using at::Tensor;
using Tensors = std::vector<Tensor>;

int64_t right_answers(const Tensor& weight, const Tensor& inputs) {
  at::mps::MPSBatchQueue queue;
  queue.start();
  std::atomic<int64_t> right{0};
  std::vector<std::thread> threads;
  const auto run = [&](const Tensors& in) {
    return at::linear(in[0].to(weight.device()), weight).cpu();
  };
  for (int64_t thread = 0; thread < inputs.size(0); ++thread) {
    threads.emplace_back([&, thread] {
      const Tensor input = inputs[thread];
      const Tensor alone = at::linear(input, weight.cpu());
      for (int at = 0; at < 25; ++at) {
        right += at::allclose(queue.submit({input}, run).get(), alone, 1e-4, 1e-4);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return right;
}

bool throws_as_itself() {
  at::mps::MPSBatchQueue queue;
  queue.start();
  auto future = queue.submit({}, [](const Tensors& in) -> Tensor { return in.at(3); });
  try {
    future.get();
  } catch (const std::out_of_range&) {
    return true;
  }
  return false;
}
"""


def has_library():
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


@unittest.skipIf(not torch.backends.mps.is_available(), "needs MPS")
@unittest.skipIf(not has_library(), f"needs libonelane ({LIBRARY})")
class TestMPSBatchQueue(TestCase):
    @classmethod
    def setUpClass(cls):
        from torch.utils.cpp_extension import load_inline

        functions = ["right_answers", "throws_as_itself"]
        cls.built = load_inline("mps_batch_queue", SOURCE, functions=functions)

    def test_eight_threads(self):
        weight = torch.randn(64, 128, device="mps")
        torch.mps.synchronize()
        self.assertEqual(  # noqa: PT009
            self.built.right_answers(weight, torch.randn(8, 4, 128)), 200
        )

    def test_exceptions(self):
        self.assertTrue(self.built.throws_as_itself())  # noqa: PT009


if __name__ == "__main__":
    run_tests()
