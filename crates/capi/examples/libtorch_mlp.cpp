// An MLP of libtorch from eight threads: rows that wait together are one forward.

#include <onelane.hpp>

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

using at::Tensor;

/// Only tensors of the same width can be concatenated; what counts is their rows.
template <>
struct onelane::BatchTraits<Tensor> {
  static std::uint64_t key(const Tensor &x) { return static_cast<std::uint64_t>(x.size(1)); }
  static std::size_t cost(const Tensor &x) { return static_cast<std::size_t>(x.size(0)); }
};

/// Built, called and destroyed on the worker.
class Mlp {
 public:
  explicit Mlp(at::Device device) : device_(device) {
    at::manual_seed(42);
    w1_ = (at::randn({512, 256}) / 16).to(device);
    w2_ = (at::randn({128, 512}) / 23).to(device);
  }

  /// Host tensors in, host tensors out: nothing of the device leaves the worker.
  std::vector<Tensor> operator()(const onelane::Batch<Tensor> &batch) {
    const c10::InferenceMode inference;
    const std::vector<Tensor> inputs(batch.begin(), batch.end());
    std::vector<std::int64_t> rows;
    for (const Tensor &x : inputs) rows.push_back(x.size(0));
    const Tensor x = at::cat(inputs).to(device_);
    const Tensor y = at::linear(at::relu(at::linear(x, w1_)), w2_).cpu();
    std::vector<Tensor> outputs;
    for (const Tensor &part : y.split_with_sizes(rows)) outputs.push_back(part.clone());
    return outputs;
  }

 private:
  at::Device device_;
  Tensor w1_, w2_;
};

int main(int argc, char **argv) {
  const at::Device device(argc > 1 ? argv[1] : "cpu");
  const auto executor = onelane::DeviceExecutor::shared(device.str());
  onelane::QueueConfig config;
  config.max_batch_cost = 64;
  const onelane::BatchQueue<Tensor, Tensor> queue(executor, config,
                                                  [device] { return Mlp(device); });
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      const Tensor x = at::full({4, 256}, thread / 8.0);
      const Tensor alone = queue.infer(x);
      for (int at = 0; at < 50; ++at) {
        if (!at::allclose(queue.submit(x).get(), alone, 1e-4, 1e-4)) std::abort();
      }
    });
  }
  for (auto &thread : threads) thread.join();
  const auto stats = queue.stats();
  std::printf("%llu requests of 4 rows from 8 threads, in %llu forwards\n",
              static_cast<unsigned long long>(stats.completed),
              static_cast<unsigned long long>(stats.batches));
}
