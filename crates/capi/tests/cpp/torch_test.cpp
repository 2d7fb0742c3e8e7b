// MPSBatchQueue.h on libtorch's CPU device.

#include "check.hpp"
#include "MPSBatchQueue.h"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <thread>
#include <typeinfo>

using at::Tensor;
using at::mps::MPSBatchQueue;

namespace {

using Tensors = std::vector<Tensor>;

MPSBatchQueue make_queue(const char *device) { return MPSBatchQueue(8, 1, 10, device); }

void in_threads(int count, const std::function<void(int)> &body) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < count; ++thread) threads.emplace_back(body, thread);
  for (auto &thread : threads) thread.join();
}

bool close(const Tensor &a, const Tensor &b, double tolerance) {
  return at::allclose(a, b, tolerance, tolerance);
}

/// 256 -> 512 -> 128, as in the original's tests.
struct Mlp {
  Tensor w1 = at::randn({512, 256}) / 16, b1 = at::randn({512});
  Tensor w2 = at::randn({128, 512}) / 23, b2 = at::randn({128});
  Tensor operator()(const Tensor &x) const {
    return at::linear(at::relu(at::linear(x, w1, b1)), w2, b2);
  }
};

/// Attention and feed-forward around two norms; width 256, 4 heads.
struct Block {
  bool norm_first;
  bool gelu;
  Tensor in_w = at::randn({768, 256}) / 16, in_b = at::randn({768}) / 16;
  Tensor out_w = at::randn({256, 256}) / 16, out_b = at::randn({256}) / 16;
  Tensor w1 = at::randn({1024, 256}) / 16, b1 = at::randn({1024}) / 16;
  Tensor w2 = at::randn({256, 1024}) / 32, b2 = at::randn({256}) / 16;
  Tensor n1 = at::ones({256}), n2 = at::ones({256}), zero = at::zeros({256});

  Tensor attention(const Tensor &x) const {
    const auto batch = x.size(0), length = x.size(1);
    const auto parts = at::linear(x, in_w, in_b).chunk(3, -1);
    const auto heads = [&](const Tensor &t) {
      return t.reshape({batch, length, 4, 64}).transpose(1, 2);
    };
    const Tensor mixed = at::scaled_dot_product_attention(heads(parts[0]), heads(parts[1]),
                                                          heads(parts[2]));
    return at::linear(mixed.transpose(1, 2).reshape({batch, length, 256}), out_w, out_b);
  }
  Tensor forward(const Tensor &x) const {
    const Tensor hidden = at::linear(x, w1, b1);
    return at::linear(gelu ? at::gelu(hidden) : at::relu(hidden), w2, b2);
  }
  Tensor operator()(const Tensor &x) const {
    const auto norm = [&](const Tensor &t, const Tensor &w) {
      return at::layer_norm(t, {256}, w, zero);
    };
    if (norm_first) {
      const Tensor y = x + attention(norm(x, n1));
      return y + forward(norm(y, n2));
    }
    const Tensor y = norm(x + attention(x), n1);
    return norm(y + forward(y), n2);
  }
};

void eight_threads_of_two_hundred() {
  const at::NoGradGuard no_grad;
  const Mlp mlp;
  auto queue = make_queue("cpu");
  queue.start();
  in_threads(8, [&](int thread) {
    const at::NoGradGuard no_grad;
    for (int at = 0; at < 200; ++at) {
      const Tensor x = at::full({4, 256}, (thread * 200 + at) / 1600.0);
      Tensor y = queue.submit({x}, [&](const Tensors &in) { return mlp(in[0]); }).get();
      CHECK(close(y, mlp(x), 1e-4));
    }
  });
  CHECK(queue.submitted_requests() == 1600 && queue.completed_requests() == 1600);
  queue.stop();
}

void exceptions_arrive_as_themselves() {
  auto queue = make_queue("cpu");
  queue.start();
  auto range = queue.submit({}, [](const Tensors &in) -> Tensor { return in.at(3); });
  auto shapes = queue.submit({at::ones({2, 3}), at::ones({2, 3})},
                             [](const Tensors &in) { return at::mm(in[0], in[1]); });
  auto own = queue.submit({}, [](const Tensors &) -> Tensor {
    throw std::runtime_error("Intentional test error");
  });
  auto good = queue.submit({at::ones({2})}, [](const Tensors &in) { return in[0] * 2; });
  CHECK_THROWS(std::out_of_range, range.get());
  CHECK_THROWS(c10::Error, shapes.get());
  CHECK(CHECK_THROWS(std::runtime_error, own.get()) == "Intentional test error");
  CHECK(at::equal(good.get(), at::full({2}, 2.0)));
}

void settings_and_states() {
  CHECK_THROWS(c10::Error, MPSBatchQueue(0));
  CHECK_THROWS(c10::Error, MPSBatchQueue(8, 0));
  CHECK_THROWS(c10::Error, MPSBatchQueue(8, 4));
  MPSBatchQueue queue(4, 2, 10, "cpu");
  CHECK(queue.batch_size() == 4 && queue.num_workers() == 2 && !queue.is_running());
  const auto nothing = [](const Tensors &) { return Tensor(); };
  CHECK_THROWS(c10::Error, queue.submit({}, nothing));
  queue.start();
  queue.start();
  CHECK(queue.is_running());
  queue.submit({}, nothing).get();
  queue.stop();
  queue.stop();
  CHECK(!queue.is_running());
  CHECK_THROWS(c10::Error, queue.submit({}, nothing));
  CHECK(queue.submitted_requests() == 1 && queue.completed_requests() == 1);

  MPSBatchQueue &shared = at::mps::getMPSBatchQueue();
  CHECK(!shared.is_running());
  at::mps::configureMPSBatchQueue(16, 1, 5);
  shared.start();
  shared.submit({}, nothing).get();
  at::mps::configureMPSBatchQueue(2);
  // An earlier reference is still the queue.
  CHECK(&shared == &at::mps::getMPSBatchQueue());
  CHECK(shared.batch_size() == 2 && !shared.is_running());
  CHECK_THROWS(c10::Error, at::mps::configureMPSBatchQueue(0));
}

void stop_runs_all_twenty_and_the_first_does_not_wait_for_the_last() {
  auto queue = make_queue("cpu");
  for (int round = 0; round < 2; ++round) {
    queue.start();
    std::vector<std::future<Tensor>> futures;
    std::promise<void> go_on;
    std::shared_future<void> may = go_on.get_future().share();
    std::promise<void> reached;
    futures.push_back(queue.submit({}, [&](const Tensors &) {
      reached.set_value();
      may.wait();
      return at::full({1}, 0.0);
    }));
    reached.get_future().wait();
    for (int at = 1; at < 19; ++at) {
      futures.push_back(queue.submit({}, [at](const Tensors &) { return at::full({1}, at); }));
    }
    CHECK(queue.pending_requests() == 18);
    // The last waits for the first to have been heard.
    futures.push_back(queue.submit({}, [&](const Tensors &) {
      CHECK(futures[18].wait_for(std::chrono::seconds(0)) == std::future_status::ready);
      return at::full({1}, 19.0);
    }));
    go_on.set_value();
    queue.stop();
    for (int at = 0; at < 20; ++at) {
      auto &future = futures[static_cast<std::size_t>(at)];
      CHECK(future.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
      CHECK(future.get().item<double>() == at);
    }
  }
}

void inputs_and_operation_are_freed_before_the_caller_hears() {
  auto queue = make_queue("cpu");
  queue.start();
  const auto token = std::make_shared<int>(0);
  for (int at = 0; at < 50; ++at) {
    Tensor input = at::ones({4});
    queue.submit({input}, [token](const Tensors &in) { return in[0] + 1; }).get();
    CHECK(input.use_count() == 1 && token.use_count() == 1);
  }
}

void fifty_rounds_of_submit_against_stop() {
  auto queue = make_queue("cpu");
  std::atomic<long> accepted{0}, answered{0};
  std::atomic<bool> over{false};
  std::atomic<int> round_of_submit{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      while (!over) {
        std::future<Tensor> future;
        try {
          future = queue.submit({}, [thread](const Tensors &) { return at::full({1}, thread); });
        } catch (const c10::Error &) {
          std::this_thread::yield();
          continue;
        }
        ++accepted;
        ++round_of_submit;
        CHECK(future.get().item<int>() == thread);
        ++answered;
      }
    });
  }
  for (int round = 0; round < 50; ++round) {
    queue.start();
    round_of_submit = 0;
    while (round_of_submit < 4) std::this_thread::yield();
    queue.stop();
  }
  over = true;
  for (auto &thread : threads) thread.join();
  CHECK(accepted == answered && accepted >= 200);
  CHECK(queue.submitted_requests() == queue.completed_requests());
}

void nested_submits_and_a_stop_from_inside() {
  auto queue = make_queue("cpu");
  queue.start();
  const auto nested = [&](const Tensors &in) {
    return queue.submit(in, [&](const Tensors &deeper) {
      return queue.submit(deeper, [](const Tensors &at) { return at[0] * 3; }).get() + 1;
    }).get() + 1;
  };
  CHECK(queue.submit({at::ones({1})}, nested).get().item<double>() == 5);
  auto stopping = queue.submit({}, [&](const Tensors &) {
    queue.stop();
    CHECK(!queue.is_running());
    queue.start();
    return queue.submit({}, [](const Tensors &) { return at::ones({1}); }).get();
  });
  CHECK(stopping.get().item<double>() == 1);
  CHECK(queue.is_running());
}

void the_callers_modes_hold_in_the_operation() {
  auto queue = make_queue("cpu");
  queue.start();
  const auto modes = [&] {
    return queue.submit({}, [](const Tensors &) {
      return at::tensor({int64_t(at::GradMode::is_enabled()),
                         int64_t(c10::InferenceMode::is_enabled()),
                         int64_t(at::autocast::is_autocast_enabled(at::kCPU)),
                         int64_t(at::autocast::get_autocast_dtype(at::kCPU) == at::kHalf)});
    }).get();
  };
  const auto are = [&](at::IntArrayRef wanted) {
    return at::equal(modes(), at::tensor(wanted));
  };
  CHECK(are({1, 0, 0, 0}));
  {
    const at::NoGradGuard guard;
    CHECK(are({0, 0, 0, 0}));
  }
  {
    const c10::InferenceMode guard;
    CHECK(are({0, 1, 0, 0}));
  }
  at::autocast::set_autocast_dtype(at::kCPU, at::kHalf);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  CHECK(are({1, 0, 1, 1}));
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  // None of them has stayed behind.
  CHECK(are({1, 0, 0, 0}));
}

void the_originals_block_and_mlp() {
  const at::NoGradGuard no_grad;
  at::manual_seed(42);
  const Mlp mlp;
  const Block block{true, true};
  auto queue = make_queue("cpu");
  queue.start();
  in_threads(8, [&](int thread) {
    const at::NoGradGuard no_grad;
    for (int at = 0; at < 3; ++at) {
      const Tensor x = at::randn({4, 256});
      CHECK(close(queue.submit({x}, [&](const Tensors &in) { return mlp(in[0]); }).get(), mlp(x),
                  1e-4));
      if (at > 0 || thread > 3) continue;
      const Tensor long_x = at::randn({4, 128, 256});
      const auto run = [&](const Tensors &in) { return block(in[0]); };
      CHECK(close(queue.submit({long_x}, run).get(), block(long_x), 1e-3));
    }
  });
}

struct Case {
  const char *name;
  Tensor input;
  std::function<Tensor(const Tensor &)> run;
};

/// The ten tests of the suite, with its shapes; golden is the same operation, sequentially.
void ten_of_ten_at_eight_threads() {
  const char *asked = std::getenv("ONELANE_ITERATIONS");
  const int iterations = asked == nullptr ? 2 : std::atoi(asked);
  const at::NoGradGuard no_grad;
  at::manual_seed(42);
  const auto linear = [](int64_t in, int64_t out) {
    return [w = at::randn({out, in}) / 16, b = at::randn({out})](const Tensor &x) {
      return at::linear(x, w, b);
    };
  };
  const auto times = [](at::IntArrayRef shape) {
    return [y = at::randn(shape)](const Tensor &x) { return at::matmul(x, y); };
  };
  std::vector<std::function<Case()>> cases = {
      [&] { return Case{"Linear", at::randn({16, 512}), linear(512, 256)}; },
      [&] { return Case{"LinearLarge", at::randn({64, 2048}), linear(2048, 2048)}; },
      [&] { return Case{"Matmul", at::randn({256, 512}), times({512, 256})}; },
      [&] { return Case{"MatmulLarge", at::randn({1024, 1024}), times({1024, 1024})}; },
      [&] { return Case{"BMM", at::randn({8, 64, 64}), times({8, 64, 64})}; },
      [&] {
        return Case{"LayerNorm", at::randn({16, 512, 768}),
                    [w = at::randn({768}), b = at::randn({768})](const Tensor &x) {
                      return at::layer_norm(x, {768}, w, b);
                    }};
      },
      [&] {
        return Case{"Softmax", at::randn({4, 128, 32000}),
                    [](const Tensor &x) { return at::softmax(x, -1); }};
      },
      [&] {
        return Case{"Conv2d", at::randn({4, 3, 224, 224}),
                    [w = at::randn({64, 3, 3, 3}), b = at::randn({64})](const Tensor &x) {
                      return at::conv2d(x, w, b, 1, 1);
                    }};
      },
      [&] {
        return Case{"GELU", at::randn({16, 512, 768}), [](const Tensor &x) { return at::gelu(x); }};
      },
      [&] {
        return Case{"TransformerBlock", at::randn({4, 128, 256}), Block{false, false}};
      },
  };
  auto queue = make_queue("cpu");
  queue.start();
  int passed = 0;
  for (const auto &make : cases) {
    alarm(2 * hang_seconds());
    const Case one = make();
    // Threads next to each other have other inputs, so that a mix-up is seen.
    const Tensors inputs = {one.input, one.input * 0.5};
    const Tensors golden = {one.run(inputs[0]), one.run(inputs[1])};
    std::atomic<bool> right{true};
    in_threads(8, [&](int thread) {
      const at::NoGradGuard no_grad;
      for (int at = 0; at < iterations; ++at) {
        const auto which = static_cast<std::size_t>((thread + at) % 2);
        const auto run = [&](const Tensors &in) { return one.run(in[0].clone()); };
        if (!close(queue.submit({inputs[which]}, run).get(), golden[which], 1e-5)) right = false;
      }
    });
    std::printf("     %-16s %s\n", one.name, right ? "pass" : "FAIL");
    std::fflush(stdout);
    passed += right;
  }
  CHECK(passed == 10);
}

}  // namespace

int main() {
  return run_tests({
      {"eight threads of two hundred", eight_threads_of_two_hundred},
      {"exceptions arrive as themselves", exceptions_arrive_as_themselves},
      {"settings and states", settings_and_states},
      {"stop runs all twenty", stop_runs_all_twenty_and_the_first_does_not_wait_for_the_last},
      {"inputs and operation are freed", inputs_and_operation_are_freed_before_the_caller_hears},
      {"fifty rounds of submit against stop", fifty_rounds_of_submit_against_stop},
      {"nested submits and a stop from inside", nested_submits_and_a_stop_from_inside},
      {"the caller's modes hold", the_callers_modes_hold_in_the_operation},
      {"the original's block and MLP", the_originals_block_and_mlp},
      {"the suite's ten tests, 8 threads", ten_of_ten_at_eight_threads},
  });
}
