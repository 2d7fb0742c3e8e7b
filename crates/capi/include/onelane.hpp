/// onelane for C++17: any number of threads share one inference device; one worker thread owns it.
///
/// Header-only, over the C ABI of onelane.h; link libonelane, or, inside a Python extension, include
/// onelane_python.hpp and take the table of the Python package. docs/cpp.md is the guide.
///
/// - Everything may be called from any thread. Objects are moved, not copied.
/// - What an engine or a closure throws arrives at the caller as itself.
/// - On a worker, `submit` runs inline what it can before it returns, so that `.get()` of its future
///   does not wait for the thread that it is called on.
#pragma once

#include "onelane.h"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace onelane {

/// What onelane itself reports; `status()` is one of the ONELANE_ codes.
class Error : public std::runtime_error {
 public:
  Error(onelane_status status, const std::string &message)
      : std::runtime_error(message), status_(status) {}
  onelane_status status() const noexcept { return status_; }

 private:
  onelane_status status_;
};

/// There was no room for as long as the call was ready to wait.
struct QueueFull : Error { using Error::Error; };
/// The queue or its executor has been shut down.
struct QueueClosed : Error { using Error::Error; };
/// The queue has given up on its engine.
struct QueueFailed : Error { using Error::Error; };
/// The deadline passed before the request was started.
struct DeadlineExceeded : Error { using Error::Error; };
/// The request was cancelled.
struct Cancelled : Error { using Error::Error; };
/// Waiting here, on a worker, would never end.
struct WouldDeadlock : Error { using Error::Error; };
/// A shutdown did not end in time; it goes on by itself.
struct TimedOut : Error { using Error::Error; };
/// Throw it from an engine when the device is out of memory: the batch is split.
struct OutOfMemory : Error {
  explicit OutOfMemory(const std::string &message) : Error(ONELANE_OUT_OF_MEMORY, message) {}
};
/// Throw it from an engine that is not to be used again: it is built anew.
struct EngineLost : Error {
  explicit EngineLost(const std::string &message) : Error(ONELANE_ENGINE_LOST, message) {}
};

namespace detail {

inline std::atomic<const onelane_api *> &api_slot() noexcept {
  static std::atomic<const onelane_api *> slot{nullptr};
  return slot;
}

/// Time as the C ABI has it; longer than 500 years is for ever.
inline std::uint64_t nanoseconds(std::chrono::nanoseconds time) noexcept {
  if (time == std::chrono::nanoseconds::max()) return ONELANE_FOREVER;
  return time.count() < 0 ? 0 : static_cast<std::uint64_t>(time.count());
}

inline std::exception_ptr make_exception(onelane_status status, const char *text) {
  const std::string message = text == nullptr ? "" : text;
  switch (status) {
    case ONELANE_FULL: return std::make_exception_ptr(QueueFull(status, message));
    case ONELANE_CLOSED: return std::make_exception_ptr(QueueClosed(status, message));
    case ONELANE_QUEUE_FAILED: return std::make_exception_ptr(QueueFailed(status, message));
    case ONELANE_DEADLINE_EXCEEDED:
      return std::make_exception_ptr(DeadlineExceeded(status, message));
    case ONELANE_CANCELLED: return std::make_exception_ptr(Cancelled(status, message));
    case ONELANE_WOULD_DEADLOCK: return std::make_exception_ptr(WouldDeadlock(status, message));
    case ONELANE_TIMEOUT: return std::make_exception_ptr(TimedOut(status, message));
    case ONELANE_INVALID_ARGUMENT:
    case ONELANE_INVALID_CONFIG:
      return std::make_exception_ptr(std::invalid_argument(message));
    default: return std::make_exception_ptr(Error(status, message));
  }
}

/// What was thrown by the callback, if it was; `payload` is one of `report`.
inline std::exception_ptr to_exception(onelane_status status, const char *message,
                                       void *payload) {
  if (payload != nullptr) return *static_cast<std::exception_ptr *>(payload);
  return make_exception(status, message);
}

}  // namespace detail

/// Takes a table of functions that was had elsewhere, before anything else of this header is used.
inline void use_api(const onelane_api *api) {
  if (api == nullptr || api->version != ONELANE_API_VERSION ||
      api->struct_size < sizeof(onelane_api)) {
    throw Error(ONELANE_UNSUPPORTED_VERSION, "this onelane is older than the header");
  }
  detail::api_slot().store(api, std::memory_order_release);
}

/// The table of functions: of whoever owns the devices of this process.
inline const onelane_api &api() {
  const onelane_api *api = detail::api_slot().load(std::memory_order_acquire);
  if (api == nullptr) {
#ifdef ONELANE_NO_LINK
    throw Error(ONELANE_UNSUPPORTED_VERSION, "call onelane::use_api or import_api first");
#else
    use_api(onelane_get_api(ONELANE_API_VERSION));
    api = detail::api_slot().load(std::memory_order_acquire);
#endif
  }
  return *api;
}

namespace detail {

inline void check(onelane_status status) {
  if (status != ONELANE_OK) {
    std::rethrow_exception(make_exception(status, api().last_error()));
  }
}

/// As `check`, for calls that may have run callbacks of this header.
inline void check_with_payload(onelane_status status) {
  if (status != ONELANE_OK) {
    std::rethrow_exception(to_exception(status, api().last_error(), api().last_payload()));
  }
}

inline void drop_exception(void *payload) noexcept {
  delete static_cast<std::exception_ptr *>(payload);
}

/// Leaves the exception that is being handled for the caller, and gives its status.
inline onelane_status report(onelane_error *error) noexcept {
  onelane_status status = ONELANE_ENGINE_FAILED;
  std::exception_ptr thrown = std::current_exception();
  const auto set = [&](const char *message) noexcept {
    auto *payload = new (std::nothrow) std::exception_ptr(thrown);
    api().error_set(error, message, payload, payload == nullptr ? nullptr : drop_exception);
  };
  try {
    throw;
  } catch (const Error &e) {
    if (e.status() == ONELANE_OUT_OF_MEMORY || e.status() == ONELANE_ENGINE_LOST) {
      status = e.status();
    }
    set(e.what());
  } catch (const std::bad_alloc &e) {
    status = ONELANE_OUT_OF_MEMORY;
    set(e.what());
  } catch (const std::exception &e) {
    set(e.what());
  } catch (...) {
    set("an exception that is no std::exception");
  }
  return status;
}

/// A handle of the ABI that is released when it goes.
template <class H, onelane_status (*onelane_api::*Release)(H *)>
class Handle {
 public:
  Handle() noexcept = default;
  explicit Handle(H *handle) noexcept : handle_(handle) {}
  Handle(Handle &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle &operator=(Handle &&other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_ != nullptr) (api().*Release)(handle_);
  }
  H *get() const noexcept { return handle_; }
  H *take() noexcept { return std::exchange(handle_, nullptr); }

 private:
  H *handle_ = nullptr;
};

/// A promise of anything, void included, and the answer until it is handed over.
template <class R>
struct Answer {
  std::optional<R> value;
  template <class F>
  void run(F &body) { value.emplace(body()); }
  void give(std::promise<R> &promise) { promise.set_value(std::move(*value)); }
  R take() { return std::move(*value); }
};
template <>
struct Answer<void> {
  template <class F>
  void run(F &body) { body(); }
  void give(std::promise<void> &promise) { promise.set_value(); }
  void take() {}
};

/// What is on its way: held by the queue until `done`, and by a ticket.
class Shared {
 public:
  void add_holder() noexcept { holders_.fetch_add(1, std::memory_order_relaxed); }
  bool let_go() noexcept { return holders_.fetch_sub(1, std::memory_order_acq_rel) == 1; }

 private:
  std::atomic<int> holders_{1};
};

}  // namespace detail

enum class Priority : std::int32_t {
  bulk = ONELANE_PRIORITY_BULK,
  normal = ONELANE_PRIORITY_NORMAL,
  interactive = ONELANE_PRIORITY_INTERACTIVE,
};

enum class Shutdown : std::int32_t { drain = ONELANE_DRAIN, abort = ONELANE_ABORT };

/// How long a call may take that can wait; for ever by default.
constexpr std::chrono::nanoseconds forever = std::chrono::nanoseconds::max();

/// How a request is submitted.
struct SubmitOptions {
  /// The longest wait for room; zero does not wait.
  std::chrono::nanoseconds timeout = forever;
  /// From now on, the time after which it must no longer start; zero is none.
  std::chrono::nanoseconds deadline{0};
  Priority priority = Priority::normal;
};

/// Settings of an executor; zero means the default.
struct ExecutorConfig {
  std::string device;
  std::size_t workers = 0;
  std::size_t capacity = 0;
  std::size_t stack_size = 0;
};

/// Settings of a queue; zero means the default (onelane.h says which).
struct QueueConfig {
  std::string name = "queue";
  std::size_t max_batch_size = 0;
  std::size_t max_batch_cost = 0;
  std::chrono::nanoseconds max_wait{0};
  std::size_t capacity = 0;
  std::size_t capacity_cost = 0;
  std::chrono::nanoseconds ageing{0};
  std::chrono::nanoseconds stall_after{0};
  std::uint32_t weight = 0;
  std::uint32_t max_rebuilds = 0;
  /// false if the engine has effects that must not happen twice: then an error on a batch is the
  /// answer to all of it. If true, a failed batch is run again in parts.
  bool idempotent = true;
};

namespace detail {

/// A closure on its way to the worker.
template <class F, class R>
struct Closure : Shared {
  explicit Closure(F &&f) : body(std::move(f)) {}

  std::optional<F> body;
  std::optional<std::promise<R>> promise;
  Answer<R> answer;
  std::exception_ptr error;

  static onelane_status run(void *self, onelane_error *) noexcept {
    auto *closure = static_cast<Closure *>(self);
    try {
      closure->answer.run(*closure->body);
    } catch (...) {
      closure->error = std::current_exception();
    }
    // On the worker, before the caller hears.
    closure->body.reset();
    return ONELANE_OK;
  }

  static void done(void *self, onelane_status status, const char *message, void *) noexcept {
    auto *closure = static_cast<Closure *>(self);
    if (status != ONELANE_OK) closure->error = make_exception(status, message);
    closure->body.reset();
    if (closure->promise) {
      std::promise<R> promise = std::move(*closure->promise);
      try {
        closure->error ? promise.set_exception(std::exchange(closure->error, nullptr))
                       : closure->answer.give(promise);
      } catch (...) {
        promise.set_exception(std::current_exception());
      }
    }
    if (closure->let_go()) delete closure;
  }
};

}  // namespace detail

/// The worker thread (or threads) that own one device. Everything that touches the device is built,
/// run and dropped there.
class DeviceExecutor {
 public:
  /// The process's executor for a device, whatever language asks: a device has one owner.
  static DeviceExecutor shared(const std::string &device) {
    return make(api().executor_shared, ExecutorConfig{device, 0, 0, 0});
  }
  /// The same, made with these settings if it is not there.
  static DeviceExecutor shared(const ExecutorConfig &config) {
    return make(api().executor_shared, config);
  }
  /// An executor of one's own: a second owner, if the device has one already. The last handle to it
  /// drains and joins its workers.
  explicit DeviceExecutor(const ExecutorConfig &config)
      : DeviceExecutor(make(api().executor_new, config)) {}

  /// Names the executor among those of the process.
  std::uint64_t id() const { return get<std::uint64_t>(api().executor_id); }
  std::size_t workers() const { return get<std::size_t>(api().executor_workers); }
  /// Whether the calling thread is a worker of this executor.
  bool is_worker() const { return get<bool>(api().executor_is_worker); }

  /// Runs a closure on the worker; inline when already there.
  template <class F, class R = std::invoke_result_t<F &>>
  std::future<R> submit(F closure, const SubmitOptions &options = {}) const {
    auto node = std::make_unique<detail::Closure<F, R>>(std::move(closure));
    std::future<R> future = node->promise.emplace().get_future();
    detail::check(hand_over(node.get(), options, nullptr));
    node.release();
    return future;
  }

  /// Runs a closure on the worker and waits for what it returns or throws.
  template <class F, class R = std::invoke_result_t<F &>>
  R call(F closure, const SubmitOptions &options = {}) const {
    auto node = std::make_unique<detail::Closure<F, R>>(std::move(closure));
    node->add_holder();
    onelane_ticket *ticket = nullptr;
    detail::check(hand_over(node.get(), options, &ticket));
    struct Release {
      void operator()(detail::Closure<F, R> *node) const noexcept {
        if (node->let_go()) delete node;
      }
    };
    std::unique_ptr<detail::Closure<F, R>, Release> held(node.release());
    detail::check(api().ticket_wait(ticket, ONELANE_FOREVER));
    if (held->error) std::rethrow_exception(std::exchange(held->error, nullptr));
    return held->answer.take();
  }

  /// Refuses new work, finishes or answers what waits, drops all engines and joins the threads.
  void shutdown(Shutdown mode = Shutdown::drain, std::chrono::nanoseconds timeout = forever) const {
    detail::check(api().executor_shutdown(handle_.get(), static_cast<std::int32_t>(mode),
                                          detail::nanoseconds(timeout)));
  }

  /// The counters of the closures.
  onelane_stats stats() const {
    onelane_stats stats{};
    stats.struct_size = sizeof stats;
    detail::check(api().executor_stats(handle_.get(), &stats));
    return stats;
  }

  onelane_health health() const {
    onelane_health health{};
    health.struct_size = sizeof health;
    detail::check(api().executor_health(handle_.get(), &health));
    return health;
  }

  onelane_executor *handle() const noexcept { return handle_.get(); }

 private:
  using Handle = detail::Handle<onelane_executor, &onelane_api::executor_release>;

  explicit DeviceExecutor(Handle handle) noexcept : handle_(std::move(handle)) {}

  template <class Make>
  static DeviceExecutor make(Make make, const ExecutorConfig &config) {
    onelane_executor_config settings{};
    settings.struct_size = sizeof settings;
    settings.device = config.device.c_str();
    settings.workers = config.workers;
    settings.capacity = config.capacity;
    settings.stack_size = config.stack_size;
    onelane_executor *executor = nullptr;
    detail::check(make(&settings, &executor));
    return DeviceExecutor(Handle(executor));
  }

  template <class T, class Get>
  T get(Get get) const {
    T value{};
    detail::check(get(handle_.get(), &value));
    return value;
  }

  template <class Node>
  onelane_status hand_over(Node *node, const SubmitOptions &options,
                           onelane_ticket **ticket) const {
    onelane_closure closure{};
    closure.struct_size = sizeof closure;
    closure.arg = node;
    closure.run = &Node::run;
    closure.done = &Node::done;
    closure.deadline_ns = detail::nanoseconds(options.deadline);
    closure.priority = static_cast<std::int32_t>(options.priority);
    return api().executor_submit(handle_.get(), &closure, detail::nanoseconds(options.timeout),
                                 ticket);
  }

  Handle handle_;
};

/// What may share a batch, and what it weighs: specialise it for an input type of your own.
template <class In>
struct BatchTraits {
  /// Only inputs with equal keys share a batch.
  static std::uint64_t key(const In &) noexcept { return 0; }
  /// In the unit of `max_batch_cost`.
  static std::size_t cost(const In &) noexcept { return 1; }
};

template <class In, class Out>
class BatchQueue;

namespace detail {

/// A request on its way.
template <class In, class Out>
struct Node : Shared {
  explicit Node(In &&in) : input(std::in_place, std::move(in)) {}

  std::optional<In> input;
  std::optional<Out> output;
  std::optional<std::promise<Out>> promise;
};

}  // namespace detail

/// A batch as an engine sees it: its inputs, in order.
template <class In>
class Batch {
 public:
  class iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = In;
    using difference_type = std::ptrdiff_t;
    using pointer = const In *;
    using reference = const In &;
    iterator(const Batch &batch, std::size_t at) noexcept : batch_(&batch), at_(at) {}
    reference operator*() const { return (*batch_)[at_]; }
    pointer operator->() const { return &(*batch_)[at_]; }
    iterator &operator++() noexcept { ++at_; return *this; }
    iterator operator++(int) noexcept { iterator was = *this; ++at_; return was; }
    bool operator==(const iterator &other) const noexcept { return at_ == other.at_; }
    bool operator!=(const iterator &other) const noexcept { return at_ != other.at_; }

   private:
    const Batch *batch_;
    std::size_t at_;
  };

  std::size_t size() const noexcept { return size_; }
  const In &operator[](std::size_t at) const { return get_(items_[at]); }
  iterator begin() const noexcept { return {*this, 0}; }
  iterator end() const noexcept { return {*this, size_}; }

 private:
  template <class, class> friend class BatchQueue;
  using Get = const In &(*)(void *item);
  Batch(void *const *items, std::size_t size, Get get) noexcept
      : items_(items), size_(size), get_(get) {}

  void *const *items_;
  std::size_t size_;
  Get get_;
};

/// Waits for one response on the thread that wants it; quicker than a future. Dropping it cancels
/// the request.
template <class In, class Out>
class Ticket {
 public:
  Ticket(Ticket &&other) noexcept
      : ticket_(std::move(other.ticket_)), node_(std::exchange(other.node_, nullptr)) {}
  Ticket &operator=(Ticket &&other) noexcept {
    std::swap(ticket_, other.ticket_);
    std::swap(node_, other.node_);
    return *this;
  }
  ~Ticket() {
    if (ticket_.get() != nullptr) api().ticket_cancel(ticket_.take());
    let_go();
  }

  /// Waits for the response; throws why there is none. Ends the ticket.
  Out wait() {
    detail::check_with_payload(api().ticket_wait(ticket_.take(), ONELANE_FOREVER));
    return std::move(*node_->output);
  }

  /// Waits for so long; `nullopt` if there is no answer yet, and the ticket stays good.
  std::optional<Out> wait_for(std::chrono::nanoseconds timeout) {
    const onelane_status status = api().ticket_wait(ticket_.get(), detail::nanoseconds(timeout));
    if (status == ONELANE_TIMEOUT) return std::nullopt;
    ticket_.take();
    detail::check_with_payload(status);
    return std::move(*node_->output);
  }

 private:
  template <class, class> friend class BatchQueue;
  using Node = detail::Node<In, Out>;
  Ticket(onelane_ticket *ticket, Node *node) noexcept : ticket_(ticket), node_(node) {}

  void let_go() noexcept {
    if (node_ != nullptr && node_->let_go()) delete node_;
  }

  detail::Handle<onelane_ticket, &onelane_api::ticket_cancel> ticket_;
  Node *node_;
};

/// The typed front of one engine: any thread submits inputs, those of equal key that wait together
/// run as one batch, and each gets its own output.
///
/// The engine is what `factory()` returns: callable as `std::vector<Out>(const Batch<In> &)`, built,
/// called and destroyed on the worker; it need not be copyable, nor movable.
template <class In, class Out>
class BatchQueue {
 public:
  /// Builds the engine on the worker; throws what the factory throws.
  template <class Factory>
  BatchQueue(const DeviceExecutor &executor, const QueueConfig &config, Factory factory) {
    using Engine = std::invoke_result_t<Factory &>;
    auto context = std::make_unique<Factory>(std::move(factory));
    onelane_engine table{};
    table.struct_size = sizeof table;
    table.context = context.get();
    table.build = &build<Factory, Engine>;
    table.run = &run<Engine>;
    table.drop_engine = [](void *engine) noexcept { delete static_cast<Engine *>(engine); };
    table.done = &done;
    table.drop_context = [](void *context) noexcept { delete static_cast<Factory *>(context); };
    table.idempotent = config.idempotent;
    onelane_queue_config settings{};
    settings.struct_size = sizeof settings;
    settings.name = config.name.c_str();
    settings.max_batch_size = config.max_batch_size;
    settings.max_batch_cost = config.max_batch_cost;
    settings.max_wait_ns = detail::nanoseconds(config.max_wait);
    settings.capacity = config.capacity;
    settings.capacity_cost = config.capacity_cost;
    settings.ageing_ns = detail::nanoseconds(config.ageing);
    settings.stall_after_ns = detail::nanoseconds(config.stall_after);
    settings.weight = config.weight;
    settings.max_rebuilds = config.max_rebuilds;
    onelane_queue *queue = nullptr;
    // The table and `&queue` are good, so the context is the library's whatever this gives.
    context.release();
    detail::check_with_payload(
        api().queue_new(executor.handle(), &settings, &table, &queue));
    queue_ = Handle(queue);
  }

  /// Submits a request and returns the future of its response. A refusal is thrown, and the input is
  /// in `input` again.
  std::future<Out> submit(In &&input, const SubmitOptions &options = {}) const {
    if (is_worker()) return submit_inline(std::move(input), options);
    auto node = std::make_unique<Node>(std::move(input));
    std::future<Out> future = node->promise.emplace().get_future();
    hand_over(*node, input, options, nullptr);
    node.release();
    return future;
  }
  std::future<Out> submit(const In &input, const SubmitOptions &options = {}) const {
    return submit(In(input), options);
  }

  /// Submits a request and returns a ticket to wait on. A refusal is thrown, and the input is in
  /// `input` again.
  Ticket<In, Out> submit_ticket(In &&input, const SubmitOptions &options = {}) const {
    auto node = std::make_unique<Node>(std::move(input));
    node->add_holder();
    onelane_ticket *ticket = nullptr;
    hand_over(*node, input, options, &ticket);
    return Ticket<In, Out>(ticket, node.release());
  }
  Ticket<In, Out> submit_ticket(const In &input, const SubmitOptions &options = {}) const {
    return submit_ticket(In(input), options);
  }

  /// Submits a request and waits for its response.
  Out infer(In input, const SubmitOptions &options = {}) const {
    return submit_ticket(std::move(input), options).wait();
  }

  /// Whether the calling thread is a worker of the queue's executor.
  bool is_worker() const {
    bool is = false;
    detail::check(api().queue_is_worker(queue_.get(), &is));
    return is;
  }

  /// Refuses new requests; what was accepted is run. Does not wait.
  void close() const { detail::check(api().queue_close(queue_.get())); }

  /// Refuses new requests, runs or answers what waits, and drops the engine on its worker.
  void shutdown(Shutdown mode = Shutdown::drain, std::chrono::nanoseconds timeout = forever) const {
    detail::check(api().queue_shutdown(queue_.get(), static_cast<std::int32_t>(mode),
                                       detail::nanoseconds(timeout)));
  }

  onelane_stats stats() const {
    onelane_stats stats{};
    stats.struct_size = sizeof stats;
    detail::check(api().queue_stats(queue_.get(), &stats));
    return stats;
  }

  onelane_health health() const {
    onelane_health health{};
    health.struct_size = sizeof health;
    detail::check(api().queue_health(queue_.get(), &health));
    return health;
  }

  onelane_queue *handle() const noexcept { return queue_.get(); }

 private:
  using Node = detail::Node<In, Out>;
  using Handle = detail::Handle<onelane_queue, &onelane_api::queue_release>;

  template <class Factory, class Engine>
  static onelane_status build(void *context, void **engine, onelane_error *error) noexcept {
    try {
      *engine = new Engine((*static_cast<Factory *>(context))());
      return ONELANE_OK;
    } catch (...) {
      return detail::report(error);
    }
  }

  static const In &input(void *item) noexcept { return *static_cast<Node *>(item)->input; }

  template <class Engine>
  static onelane_status run(void *engine, void *const *items, std::size_t count,
                            onelane_error *error) noexcept {
    try {
      const Batch<In> batch(items, count, &input);
      std::vector<Out> outputs = (*static_cast<Engine *>(engine))(batch);
      if (outputs.size() != count) {
        throw Error(ONELANE_ENGINE_FAILED,
                    "the engine returned " + std::to_string(outputs.size()) + " outputs for " +
                        std::to_string(count) + " requests");
      }
      for (std::size_t at = 0; at < count; ++at) {
        static_cast<Node *>(items[at])->output.emplace(std::move(outputs[at]));
      }
      return ONELANE_OK;
    } catch (...) {
      return detail::report(error);
    }
  }

  static void done(void *, void *item, onelane_status status, const char *message,
                   void *payload) noexcept {
    auto *node = static_cast<Node *>(item);
    node->input.reset();
    if (node->promise) {
      std::promise<Out> promise = std::move(*node->promise);
      try {
        status == ONELANE_OK
            ? promise.set_value(std::move(*node->output))
            : promise.set_exception(detail::to_exception(status, message, payload));
      } catch (...) {
        promise.set_exception(std::current_exception());
      }
    }
    if (node->let_go()) delete node;
  }

  void hand_over(Node &node, In &input, const SubmitOptions &options,
                 onelane_ticket **ticket) const {
    onelane_request request{};
    request.struct_size = sizeof request;
    request.item = &node;
    request.key = BatchTraits<In>::key(*node.input);
    request.cost = BatchTraits<In>::cost(*node.input);
    request.deadline_ns = detail::nanoseconds(options.deadline);
    request.priority = static_cast<std::int32_t>(options.priority);
    const onelane_status status = api().queue_submit(
        queue_.get(), &request, detail::nanoseconds(options.timeout), ticket);
    if (status != ONELANE_OK) {
      input = std::move(*node.input);
      detail::check(status);
    }
  }

  /// On the worker nobody else can run it: waits for it here, by which it is run.
  std::future<Out> submit_inline(In &&input, const SubmitOptions &options) const {
    Ticket<In, Out> ticket = submit_ticket(std::move(input), options);
    std::promise<Out> promise;
    try {
      promise.set_value(ticket.wait());
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
    return promise.get_future();
  }

  Handle queue_;
};

}  // namespace onelane
