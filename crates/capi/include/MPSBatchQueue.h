/// MPSBatchQueue: operations on at::Tensors from any thread run on the one worker that owns the device.
///
/// The class, names and semantics of dropbox/dML's patch 038, on onelane. Operations run one by one,
/// each is synchronised, and its future is set before the next one runs. What differs, all for the
/// better:
/// - an operation that was accepted is answered, whatever stops meanwhile;
/// - `submit` and `stop` may be called from inside an operation (`submit` then runs it at once);
/// - what waits is bounded: `submit` blocks while `kCapacity` operations wait;
/// - inputs and operation are freed on the worker before the caller hears;
/// - the caller's grad, inference and autocast modes hold in the operation;
/// - references from `getMPSBatchQueue` stay valid.
///
/// Compile MPSBatchQueue.cpp (on Apple MPSBatchQueue.mm) with your program and link libonelane and
/// libtorch. libtorch 2.15 needs C++20. With ONELANE_NO_LINK defined, libonelane is looked for when a
/// queue is started.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/macros/Export.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

namespace at::mps {

class TORCH_API MPSBatchQueue {
 public:
  using Operation = std::function<at::Tensor(const std::vector<at::Tensor> &)>;

  static constexpr int kMaxWorkers = 3;
  static constexpr std::size_t kCapacity = 1024;

  /// batch_size: the most operations that are taken at once.
  /// num_workers: 1 to 3. One is the device's one owner in this process. More are threads of this
  ///   queue's own: on MPS they can corrupt results.
  /// batch_timeout_ms: accepted, and delays nothing, as in the original.
  /// device: the device whose owner runs the operations, for example "mps" or "cpu".
  ///
  /// Throws c10::Error for values that cannot be used. Does not start.
  explicit MPSBatchQueue(std::size_t batch_size = 8, int num_workers = 1,
                         std::uint32_t batch_timeout_ms = 10, std::string device = "mps");
  ~MPSBatchQueue();
  MPSBatchQueue(const MPSBatchQueue &) = delete;
  MPSBatchQueue &operator=(const MPSBatchQueue &) = delete;

  /// Runs `operation(inputs)` on the worker. The future has its tensor or what it threw, exactly.
  /// Blocks while the queue is full. Throws c10::Error if the queue is not running.
  std::future<at::Tensor> submit(std::vector<at::Tensor> inputs, Operation operation);

  /// Starts; nothing happens if it runs.
  void start();
  /// Refuses new operations, runs all that were accepted, and waits for them; from inside an
  /// operation it does not wait. It can be started again.
  void stop();

  bool is_running() const;
  /// What waits; not what runs.
  std::size_t pending_requests() const;
  std::uint64_t completed_requests() const;
  std::uint64_t submitted_requests() const;
  int num_workers() const;
  std::size_t batch_size() const;

 private:
  friend TORCH_API void configureMPSBatchQueue(std::size_t, int, std::uint32_t);
  struct State;
  std::unique_ptr<State> state_;
};

/// The process's queue; not started.
TORCH_API MPSBatchQueue &getMPSBatchQueue();

/// Stops the process's queue and gives it other settings; does not start it.
TORCH_API void configureMPSBatchQueue(std::size_t batch_size, int num_workers = 1,
                                      std::uint32_t batch_timeout_ms = 10);

}  // namespace at::mps
