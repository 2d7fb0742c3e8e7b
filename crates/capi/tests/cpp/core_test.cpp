// onelane.hpp: engines, futures and tickets, exact exceptions, move-only types, refusals, races.

#include "check.hpp"
#include "onelane.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <typeinfo>

using onelane::Batch;
using onelane::BatchQueue;
using onelane::DeviceExecutor;
using onelane::QueueConfig;

namespace {

/// Opens once.
class Gate {
 public:
  void open() {
    std::lock_guard<std::mutex> lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return is_open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = false;
};

/// Keeps the worker busy, from when it is made until it is released.
class Hold {
 public:
  explicit Hold(const DeviceExecutor &device) {
    held_ = device.submit([this] {
      running_.open();
      go_on_.wait();
    });
    running_.wait();
  }
  void release() {
    go_on_.open();
    held_.get();
  }

 private:
  Gate running_, go_on_;
  std::future<void> held_;
};

struct Teapot : std::runtime_error {
  explicit Teapot(int value) : std::runtime_error("teapot"), number(value) {}
  int number;
};

/// An input and output that can only be moved.
using Box = std::unique_ptr<int>;

/// Neither copyable nor movable, bound to the thread that made it.
class Doubler {
 public:
  Doubler() : home_(std::this_thread::get_id()) { ++alive; }
  ~Doubler() {
    CHECK(std::this_thread::get_id() == home_);
    --alive;
  }
  Doubler(const Doubler &) = delete;

  std::vector<Box> operator()(const Batch<Box> &batch) {
    CHECK(std::this_thread::get_id() == home_);
    largest = std::max(largest.load(), batch.size());
    std::vector<Box> outputs;
    for (const Box &input : batch) {
      if (*input == 13) throw Teapot(13);
      if (*input == 14) throw std::out_of_range("fourteen");
      if (*input == 15) throw 15;
      outputs.push_back(std::make_unique<int>(*input * 2));
    }
    return outputs;
  }

  static inline std::atomic<int> alive{0};
  static inline std::atomic<std::size_t> largest{0};

 private:
  std::thread::id home_;
};

Doubler make_doubler() { return Doubler(); }

Box box(int value) { return std::make_unique<int>(value); }

void many_threads_get_their_own() {
  {
    const auto device = DeviceExecutor::shared("cpp-many");
    const BatchQueue<Box, Box> queue(device, QueueConfig{}, make_doubler);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 8; ++thread) {
      threads.emplace_back([&, thread] {
        for (int at = 0; at < 200; ++at) {
          const int value = 100 + thread * 1000 + at;
          if (at % 2 == 0) {
            CHECK(*queue.submit(box(value)).get() == 2 * value);
          } else {
            CHECK(*queue.submit_ticket(box(value)).wait() == 2 * value);
          }
        }
      });
    }
    for (auto &thread : threads) thread.join();
    CHECK(queue.stats().completed == 1600);
    CHECK(Doubler::alive == 1);
    queue.shutdown();
    CHECK(Doubler::alive == 0);
    CHECK(queue.health().state == ONELANE_SHUT_DOWN);
  }
}

void exceptions_arrive_as_themselves_and_alone() {
  const auto device = DeviceExecutor::shared("cpp-exceptions");
  const BatchQueue<Box, Box> queue(device, QueueConfig{}, make_doubler);
  Hold held(device);
  // All of them wait, so they are one batch.
  Doubler::largest = 0;
  std::vector<std::future<Box>> futures;
  for (int value = 10; value < 18; ++value) futures.push_back(queue.submit(box(value)));
  held.release();
  for (int value = 10; value < 18; ++value) {
    auto &future = futures[static_cast<std::size_t>(value - 10)];
    if (value == 13) {
      try {
        future.get();
        CHECK(!"no exception");
      } catch (const Teapot &teapot) {
        CHECK(teapot.number == 13);
      }
    } else if (value == 14) {
      CHECK(CHECK_THROWS(std::out_of_range, future.get()) == "fourteen");
    } else if (value == 15) {
      try {
        future.get();
        CHECK(!"no exception");
      } catch (int number) {
        CHECK(number == 15);
      }
    } else {
      CHECK(*future.get() == 2 * value);
    }
  }
  CHECK(Doubler::largest == 8);
  CHECK_THROWS(Teapot, queue.submit_ticket(box(13)).wait());
  CHECK_THROWS(std::out_of_range, queue.infer(box(14)));
}

void a_factory_that_throws_is_heard() {
  const auto device = DeviceExecutor::shared("cpp-factory");
  const auto fail = []() -> Doubler { throw Teapot(1); };
  CHECK_THROWS(Teapot, (BatchQueue<Box, Box>(device, QueueConfig{}, fail)));
  QueueConfig odd;
  odd.weight = 0;  // The default.
  odd.max_batch_size = 1;
  BatchQueue<Box, Box>(device, odd, make_doubler);
  CHECK_THROWS(std::invalid_argument, DeviceExecutor::shared(""));
}

void lost_engines_and_memory() {
  const auto device = DeviceExecutor::shared("cpp-lost");
  auto built = std::make_shared<int>(0);
  struct Fragile {
    int *built;
    std::vector<int> operator()(const Batch<int> &batch) {
      if (batch.size() > 2) throw onelane::OutOfMemory("more than two");
      std::vector<int> outputs;
      for (int input : batch) {
        if (input == 13) throw onelane::EngineLost("gone");
        outputs.push_back(input);
      }
      return outputs;
    }
  };
  const BatchQueue<int, int> queue(device, QueueConfig{}, [built] {
    ++*built;
    return Fragile{built.get()};
  });
  Hold held(device);
  std::vector<std::future<int>> futures;
  for (int value = 0; value < 8; ++value) futures.push_back(queue.submit(value));
  held.release();
  for (int value = 0; value < 8; ++value) CHECK(futures[size_t(value)].get() == value);
  CHECK(queue.stats().memory_splits >= 1);
  CHECK(CHECK_THROWS(onelane::EngineLost, queue.infer(13)) == "gone");
  CHECK(queue.infer(7) == 7);
  CHECK(device.call([built] { return *built; }) == 2);
}

void closures() {
  const auto device = DeviceExecutor::shared("cpp-closures");
  CHECK(device.call([] { return 6 * 7; }) == 42);
  CHECK(device.submit([] { return std::make_unique<int>(1); }).get() != nullptr);
  device.submit([] {}).get();
  CHECK_THROWS(std::out_of_range, device.call([]() -> int { throw std::out_of_range("x"); }));
  CHECK_THROWS(Teapot, device.submit([]() { throw Teapot(1); }).get());
  // Move-only, and inline on the worker, where waiting for oneself would hang.
  auto owned = std::make_unique<int>(5);
  const int five = device.call([&device, owned = std::move(owned)] {
    CHECK(device.is_worker());
    return device.submit([&owned] { return *owned; }).get();
  });
  CHECK(five == 5 && !device.is_worker());
}

void what_is_passed_in_is_freed_before_the_caller_hears() {
  const auto device = DeviceExecutor::shared("cpp-freed");
  struct Engine {
    std::vector<int> operator()(const Batch<std::shared_ptr<int>> &batch) {
      std::vector<int> outputs;
      for (const auto &input : batch) outputs.push_back(*input);
      return outputs;
    }
  };
  const BatchQueue<std::shared_ptr<int>, int> queue(device, QueueConfig{}, [] { return Engine{}; });
  for (int at = 0; at < 50; ++at) {
    auto input = std::make_shared<int>(at);
    CHECK(queue.submit(std::shared_ptr<int>(input)).get() == at);
    CHECK(input.use_count() == 1);
    CHECK(queue.submit_ticket(std::shared_ptr<int>(input)).wait() == at);
    CHECK(input.use_count() == 1);
    CHECK(device.submit([input] { return *input; }).get() == at);
    CHECK(input.use_count() == 1);
  }
}

void nested_submits_from_inside_an_engine() {
  const auto device = DeviceExecutor::shared("cpp-nested");
  struct Inner {
    std::vector<int> operator()(const Batch<int> &batch) {
      return std::vector<int>(batch.begin(), batch.end());
    }
  };
  const auto inner =
      std::make_shared<BatchQueue<int, int>>(device, QueueConfig{}, [] { return Inner{}; });
  struct Outer {
    std::shared_ptr<BatchQueue<int, int>> inner;
    std::vector<int> operator()(const Batch<int> &batch) {
      std::vector<int> outputs;
      for (int input : batch) outputs.push_back(inner->submit(input).get() + 1);
      return outputs;
    }
  };
  const BatchQueue<int, int> outer(device, QueueConfig{}, [inner] { return Outer{inner}; });
  CHECK(outer.submit(41).get() == 42);

  // An engine that asks itself cannot be answered, and is told.
  struct Selfish {
    const std::atomic<const BatchQueue<int, int> *> *self;
    std::vector<int> operator()(const Batch<int> &) { return {self->load()->submit(1).get()}; }
  };
  std::atomic<const BatchQueue<int, int> *> self{nullptr};
  const BatchQueue<int, int> selfish(device, QueueConfig{}, [&] { return Selfish{&self}; });
  self = &selfish;
  CHECK_THROWS(onelane::WouldDeadlock, selfish.submit(1).get());
}

void refusals_give_the_input_back() {
  const auto device = DeviceExecutor::shared("cpp-refusals");
  QueueConfig config;
  config.capacity = 2;
  const BatchQueue<Box, Box> queue(device, config, make_doubler);
  Hold held(device);
  auto one = queue.submit(box(1));
  auto two = queue.submit(box(2));
  onelane::SubmitOptions at_once;
  at_once.timeout = std::chrono::nanoseconds(0);
  Box three = box(3);
  CHECK_THROWS(onelane::QueueFull, queue.submit(std::move(three), at_once));
  CHECK(three && *three == 3);
  at_once.timeout = std::chrono::milliseconds(1);
  CHECK_THROWS(onelane::QueueFull, queue.submit_ticket(std::move(three), at_once));
  CHECK(three && *three == 3);
  held.release();
  CHECK(*one.get() == 2 && *two.get() == 4);
  queue.close();
  CHECK_THROWS(onelane::QueueClosed, queue.submit(std::move(three)));
  CHECK(three && *three == 3);
}

void deadlines_cancelling_and_timeouts() {
  const auto device = DeviceExecutor::shared("cpp-deadlines");
  const BatchQueue<Box, Box> queue(device, QueueConfig{}, make_doubler);
  Hold held(device);
  onelane::SubmitOptions soon;
  soon.deadline = std::chrono::milliseconds(1);
  soon.priority = onelane::Priority::interactive;
  // The worker is busy, and yet it is told.
  CHECK_THROWS(onelane::DeadlineExceeded, queue.submit(box(1), soon).get());
  CHECK_THROWS(onelane::DeadlineExceeded, queue.submit_ticket(box(1), soon).wait());
  {
    auto dropped = queue.submit_ticket(box(2));
    CHECK(!dropped.wait_for(std::chrono::nanoseconds(0)));
  }
  CHECK(queue.stats().cancelled == 1 && queue.stats().expired == 2);
  held.release();
  auto ticket = queue.submit_ticket(box(3));
  CHECK(*ticket.wait_for(std::chrono::seconds(60)).value() == 6);
  CHECK_THROWS(onelane::Error, ticket.wait());
}

/// Every accepted future resolves, whatever is shut down meanwhile.
void fifty_rounds_of_submit_against_shutdown() {
  std::atomic<long> accepted{0};
  std::atomic<long> answered{0};
  for (int round = 0; round < 50; ++round) {
    const auto device = DeviceExecutor::shared("cpp-rounds");
    const BatchQueue<Box, Box> queue(device, QueueConfig{}, make_doubler);
    std::atomic<int> started{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&] {
        std::vector<std::future<Box>> futures;
        try {
          for (;;) {
            futures.push_back(queue.submit(box(21)));
            ++accepted;
            if (futures.size() == 1) ++started;
          }
        } catch (const onelane::QueueClosed &) {
        }
        for (auto &future : futures) {
          try {
            CHECK(*future.get() == 42);
          } catch (const onelane::QueueClosed &) {
          }
          ++answered;
        }
      });
    }
    while (started < 4) std::this_thread::yield();
    const auto mode = round % 2 == 0 ? onelane::Shutdown::drain : onelane::Shutdown::abort;
    if (round % 5 == 0) {
      device.shutdown(mode);
    } else {
      queue.shutdown(mode);
    }
    for (auto &thread : threads) thread.join();
  }
  CHECK(accepted == answered && accepted >= 200);
  CHECK(Doubler::alive == 0);
}

/// Only equal keys share a batch; a batch is no heavier than it may be.
struct Text {
  std::string text;
};

}  // namespace

template <>
struct onelane::BatchTraits<Text> {
  static std::uint64_t key(const Text &text) { return text.text.front(); }
  static std::size_t cost(const Text &text) { return text.text.size(); }
};

namespace {

void keys_and_costs() {
  const auto device = DeviceExecutor::shared("cpp-keys");
  struct Engine {
    std::vector<std::string> operator()(const Batch<Text> &batch) {
      std::string all;
      for (const Text &text : batch) all += text.text;
      return std::vector<std::string>(batch.size(), all);
    }
  };
  QueueConfig config;
  config.max_batch_cost = 6;
  const BatchQueue<Text, std::string> queue(device, config, [] { return Engine{}; });
  Hold held(device);
  std::vector<std::future<std::string>> futures;
  for (const char *text : {"aa", "bb", "aaa", "b", "aaaa"}) futures.push_back(queue.submit({text}));
  held.release();
  const std::array<const char *, 5> wanted = {"aaaaa", "bbb", "aaaaa", "bbb", "aaaa"};
  for (std::size_t at = 0; at < 5; ++at) CHECK(futures[at].get() == wanted[at]);
}

}  // namespace

int main() {
  return run_tests({
      {"many threads get their own", many_threads_get_their_own},
      {"exceptions arrive as themselves, and alone", exceptions_arrive_as_themselves_and_alone},
      {"a factory that throws is heard", a_factory_that_throws_is_heard},
      {"lost engines and memory", lost_engines_and_memory},
      {"closures", closures},
      {"what is passed in is freed", what_is_passed_in_is_freed_before_the_caller_hears},
      {"nested submits", nested_submits_from_inside_an_engine},
      {"refusals give the input back", refusals_give_the_input_back},
      {"deadlines, cancelling, timeouts", deadlines_cancelling_and_timeouts},
      {"fifty rounds of submit against shutdown", fifty_rounds_of_submit_against_shutdown},
      {"keys and costs", keys_and_costs},
  });
}
