// MPSBatchQueue on onelane; see the header.

#include "MPSBatchQueue.h"

#include "onelane.hpp"

#include <ATen/ThreadLocalState.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

#if defined(ONELANE_NO_LINK)
#include <dlfcn.h>

#include <cstdlib>
#endif
#if defined(__APPLE__)
#include <ATen/detail/MPSHooksInterface.h>

extern "C" void *objc_autoreleasePoolPush(void);
extern "C" void objc_autoreleasePoolPop(void *pool);
#endif

namespace at::mps {
namespace {

/// What the worker does around each operation.
class OperationScope {
 public:
#if defined(__APPLE__)
  OperationScope() : pool_(objc_autoreleasePoolPush()) {}
  ~OperationScope() { objc_autoreleasePoolPop(pool_); }
  void synchronize() {
    static const bool available = at::detail::getMPSHooks().hasMPS();
    if (available) at::detail::getMPSHooks().deviceSynchronize();
  }

 private:
  void *pool_;
#else
  OperationScope() {}
  void synchronize() {}
#endif
};

#if defined(ONELANE_NO_LINK)
/// Finds libonelane at run time, unless somebody has given its functions (onelane::use_api). The
/// environment variable ONELANE_LIBRARY names it, if it is not where the loader looks.
void load_api() {
  if (onelane::detail::api_slot().load(std::memory_order_acquire) != nullptr) return;
  const char *name = std::getenv("ONELANE_LIBRARY");
  if (name == nullptr) {
#if defined(__APPLE__)
    name = "libonelane.1.dylib";
#else
    name = "libonelane.so.1";
#endif
  }
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library != nullptr, "MPSBatchQueue needs libonelane: ", dlerror());
  using GetApi = const onelane_api *(*)(std::uint32_t);
  const auto get_api = reinterpret_cast<GetApi>(dlsym(library, "onelane_get_api"));
  TORCH_CHECK(get_api != nullptr, "MPSBatchQueue: ", name, " is not libonelane");
  onelane::use_api(get_api(ONELANE_API_VERSION));
}
#else
void load_api() {}
#endif

struct Counters {
  std::atomic<std::uint64_t> submitted{0};
  std::atomic<std::uint64_t> completed{0};
};

/// One operation, from submit to its answer.
struct Pending {
  Pending(std::vector<at::Tensor> &&tensors, MPSBatchQueue::Operation &&function,
          std::shared_ptr<Counters> shared)
      : inputs(std::move(tensors)),
        operation(std::move(function)),
        modes(std::in_place),
        counters(std::move(shared)) {}

  std::vector<at::Tensor> inputs;
  MPSBatchQueue::Operation operation;
  std::optional<at::ThreadLocalState> modes;
  std::shared_ptr<Counters> counters;
  std::promise<at::Tensor> promise;
  bool answered = false;

  /// On the worker. Everything of the operation is freed there, before the caller hears.
  void run() noexcept {
    at::Tensor result;
    std::exception_ptr error;
    {
      OperationScope scope;
      try {
        at::ThreadLocalStateGuard guard(*modes);
        result = operation(inputs);
        scope.synchronize();
      } catch (...) {
        error = std::current_exception();
      }
      operation = nullptr;
      inputs = {};
      modes.reset();
    }
    answer(std::move(result), std::move(error));
  }

  void answer(at::Tensor result, std::exception_ptr error) noexcept {
    answered = true;
    counters->completed.fetch_add(1, std::memory_order_relaxed);
    // This object may outlive what the caller does next, the promise must not be touched then.
    std::promise<at::Tensor> given = std::move(promise);
    error ? given.set_exception(std::move(error)) : given.set_value(std::move(result));
  }
};

onelane_status run(void *, void *const *items, std::size_t count, onelane_error *) noexcept {
  for (std::size_t at = 0; at < count; ++at) static_cast<Pending *>(items[at])->run();
  return ONELANE_OK;
}

void done(void *, void *item, onelane_status status, const char *message, void *) noexcept {
  std::unique_ptr<Pending> pending(static_cast<Pending *>(item));
  if (!pending->answered) {
    // Somebody else has shut the device down.
    const std::string text = message == nullptr ? "" : message;
    pending->answer({}, std::make_exception_ptr(c10::Error(
                            {__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)},
                            "MPSBatchQueue: " + text)));
  }
  static_cast<void>(status);
}

/// What runs between a start and a stop.
struct Running {
  onelane::DeviceExecutor executor;
  onelane::detail::Handle<onelane_queue, &onelane_api::queue_release> queue;

  Running(const std::string &device, int workers, std::size_t batch_size)
      : executor(open(device, workers)) {
    onelane_engine engine{};
    engine.struct_size = sizeof engine;
    engine.run = run;
    engine.done = done;
    onelane_queue_config config{};
    config.struct_size = sizeof config;
    config.name = "MPSBatchQueue";
    config.max_batch_size = batch_size;
    config.capacity = MPSBatchQueue::kCapacity;
    onelane_queue *made = nullptr;
    onelane::detail::check(onelane::api().queue_new(executor.handle(), &config, &engine, &made));
    queue = decltype(queue)(made);
  }

  static onelane::DeviceExecutor open(const std::string &device, int workers) {
    if (workers == 1) return onelane::DeviceExecutor::shared(device);
    return onelane::DeviceExecutor(
        onelane::ExecutorConfig{device, static_cast<std::size_t>(workers), 0, 0});
  }
};

void check_settings(std::size_t batch_size, int num_workers) {
  TORCH_CHECK(batch_size >= 1, "MPSBatchQueue: batch_size must be at least 1, got ", batch_size);
  TORCH_CHECK(num_workers >= 1 && num_workers <= MPSBatchQueue::kMaxWorkers,
              "MPSBatchQueue: num_workers must be from 1 to ", MPSBatchQueue::kMaxWorkers, ", got ",
              num_workers);
}

}  // namespace

struct MPSBatchQueue::State {
  std::size_t batch_size;
  int num_workers;
  std::string device;
  std::shared_ptr<Counters> counters = std::make_shared<Counters>();
  /// Guards `running` and the settings; never held while something is waited for.
  mutable std::mutex mutex;
  std::shared_ptr<Running> running;

  std::shared_ptr<Running> current() const {
    std::lock_guard<std::mutex> lock(mutex);
    return running;
  }
};

MPSBatchQueue::MPSBatchQueue(std::size_t batch_size, int num_workers, std::uint32_t,
                             std::string device) {
  check_settings(batch_size, num_workers);
  state_ = std::make_unique<State>();
  state_->batch_size = batch_size;
  state_->num_workers = num_workers;
  state_->device = std::move(device);
}

MPSBatchQueue::~MPSBatchQueue() {
  try {
    stop();
  } catch (...) {  // Nothing is lost: what was accepted is run without anybody waiting.
  }
}

std::future<at::Tensor> MPSBatchQueue::submit(std::vector<at::Tensor> inputs,
                                              Operation operation) {
  const std::shared_ptr<Running> running = state_->current();
  TORCH_CHECK(running, "MPSBatchQueue is not running: call start() first");
  auto pending =
      std::make_unique<Pending>(std::move(inputs), std::move(operation), state_->counters);
  std::future<at::Tensor> future = pending->promise.get_future();
  if (running->executor.is_worker()) {
    state_->counters->submitted.fetch_add(1, std::memory_order_relaxed);
    pending->run();
    return future;
  }
  onelane_request request{};
  request.struct_size = sizeof request;
  request.item = pending.get();
  state_->counters->submitted.fetch_add(1, std::memory_order_relaxed);
  // It is accepted and will be answered, or refused: a stop in between changes nothing of that.
  const onelane_status status =
      onelane::api().queue_submit(running->queue.get(), &request, ONELANE_FOREVER, nullptr);
  if (status != ONELANE_OK) {
    state_->counters->submitted.fetch_sub(1, std::memory_order_relaxed);
    TORCH_CHECK(false, "MPSBatchQueue is not running: ", onelane::api().last_error());
  }
  pending.release();
  return future;
}

void MPSBatchQueue::start() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->running) return;
  try {
    load_api();
    state_->running =
        std::make_shared<Running>(state_->device, state_->num_workers, state_->batch_size);
  } catch (const c10::Error &) {
    throw;
  } catch (const std::exception &e) {
    TORCH_CHECK(false, "MPSBatchQueue could not be started: ", e.what());
  }
}

void MPSBatchQueue::stop() {
  std::shared_ptr<Running> running;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    running = std::move(state_->running);
    state_->running = nullptr;
  }
  if (!running) return;
  // On a worker this does not wait; the shutdown goes on when the operation ends.
  onelane::api().queue_shutdown(running->queue.get(), ONELANE_DRAIN, ONELANE_FOREVER);
}

bool MPSBatchQueue::is_running() const { return state_->current() != nullptr; }

std::size_t MPSBatchQueue::pending_requests() const {
  const std::shared_ptr<Running> running = state_->current();
  if (!running) return 0;
  onelane_stats stats{};
  stats.struct_size = sizeof stats;
  onelane::detail::check(onelane::api().queue_stats(running->queue.get(), &stats));
  return static_cast<std::size_t>(stats.waiting);
}

std::uint64_t MPSBatchQueue::completed_requests() const { return state_->counters->completed; }

std::uint64_t MPSBatchQueue::submitted_requests() const { return state_->counters->submitted; }

int MPSBatchQueue::num_workers() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->num_workers;
}

std::size_t MPSBatchQueue::batch_size() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->batch_size;
}

MPSBatchQueue &getMPSBatchQueue() {
  // Never destroyed: operations may run when static objects go.
  static auto *queue = new MPSBatchQueue();
  return *queue;
}

void configureMPSBatchQueue(std::size_t batch_size, int num_workers, std::uint32_t) {
  check_settings(batch_size, num_workers);
  MPSBatchQueue &queue = getMPSBatchQueue();
  queue.stop();
  std::lock_guard<std::mutex> lock(queue.state_->mutex);
  queue.state_->batch_size = batch_size;
  queue.state_->num_workers = num_workers;
}

}  // namespace at::mps
