// What a request costs through onelane, beside a hand-written queue with a mutex and a condition variable.
//
// Both run the same engine, which adds one to each number of a batch of at most 32. Rounds of the two
// alternate; printed are medians, and the medians of the ratios of neighbouring rounds. A figure with one
// caller wants a quiet machine.

#include "onelane.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

struct AddOne {
  std::vector<int> operator()(const onelane::Batch<int> &batch) {
    std::vector<int> outputs;
    outputs.reserve(batch.size());
    for (int input : batch) outputs.push_back(input + 1);
    return outputs;
  }
};

/// What people write: promises in a deque, a worker that takes what waits.
class HandWritten {
 public:
  HandWritten() : worker_([this] { work(); }) {}
  ~HandWritten() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    filled_.notify_one();
    worker_.join();
  }

  std::future<int> submit(int input) {
    std::promise<int> promise;
    std::future<int> future = promise.get_future();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back({input, std::move(promise)});
    }
    filled_.notify_one();
    return future;
  }

 private:
  struct Request {
    int input;
    std::promise<int> promise;
  };

  void work() {
    std::vector<Request> batch;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        filled_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
        if (waiting_.empty()) return;
        while (!waiting_.empty() && batch.size() < 32) {
          batch.push_back(std::move(waiting_.front()));
          waiting_.pop_front();
        }
      }
      std::vector<int> outputs;
      outputs.reserve(batch.size());
      for (const Request &request : batch) outputs.push_back(request.input + 1);
      for (std::size_t at = 0; at < batch.size(); ++at) batch[at].promise.set_value(outputs[at]);
      batch.clear();
    }
  }

  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<Request> waiting_;
  bool stopping_ = false;
  std::thread worker_;
};

/// Microseconds a request, with so many callers that wait for each before the next.
template <class Ask>
double cost(int callers, int requests, const Ask &ask) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&] {
      ++ready;
      while (!go) std::this_thread::yield();
      for (int at = 0; at < requests; ++at) {
        if (ask(at) != at + 1) std::abort();
      }
    });
  }
  while (ready < callers) std::this_thread::yield();
  const auto start = Clock::now();
  go = true;
  for (auto &thread : threads) thread.join();
  const std::chrono::duration<double, std::micro> took = Clock::now() - start;
  return took.count() / (double(callers) * requests);
}

/// Microseconds a request for one caller, in the least disturbed tenth of bursts of 20: on a busy machine,
/// those that nobody interrupted.
template <class Ask>
double undisturbed(const Ask &ask) {
  std::vector<double> bursts;
  for (int burst = 0; burst < 500; ++burst) {
    const auto start = Clock::now();
    for (int at = 0; at < 20; ++at) ask(at);
    const std::chrono::duration<double, std::micro> took = Clock::now() - start;
    bursts.push_back(took.count() / 20);
  }
  std::sort(bursts.begin(), bursts.end());
  return bursts[bursts.size() / 10];
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
  const auto device = onelane::DeviceExecutor::shared("overhead");
  const onelane::BatchQueue<int, int> queue(device, {}, [] { return AddOne{}; });
  HandWritten hand;
  const auto by_ticket = [&](int at) { return queue.submit_ticket(at).wait(); };
  const auto by_future = [&](int at) { return queue.submit(at).get(); };
  const auto by_hand = [&](int at) { return hand.submit(at).get(); };
  std::printf("one caller, undisturbed: ticket %.2f us, std::future %.2f us, by hand %.2f us\n",
              undisturbed(by_ticket), undisturbed(by_future), undisturbed(by_hand));
  std::fflush(stdout);
  for (int callers : {1, 32}) {
    const int requests = callers == 1 ? 5000 : 1000;
    std::vector<double> tickets, futures, hands, ticket_ratios, future_ratios;
    for (int round = 0; round <= rounds; ++round) {
      const double t = cost(callers, requests, by_ticket);
      const double h = cost(callers, requests, by_hand);
      const double f = cost(callers, requests, by_future);
      if (round == 0) continue;  // To warm up.
      tickets.push_back(t), hands.push_back(h), futures.push_back(f);
      ticket_ratios.push_back(h / t), future_ratios.push_back(h / f);
    }
    std::printf("%2d callers: ticket %.2f us, std::future %.2f us, by hand %.2f us; "
                "by hand / ticket %.2f, by hand / future %.2f\n",
                callers, median(tickets), median(futures), median(hands), median(ticket_ratios),
                median(future_ratios));
  }
}
