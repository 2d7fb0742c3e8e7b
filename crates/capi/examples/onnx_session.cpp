// An ONNX Runtime session behind a batch queue: rows of eight threads run together, and one thread
// owns the session.
//
// Usage: onnx_session LIBONNXRUNTIME MODEL. The library is opened at run time, and the few functions
// that are used are taken from its table by their places, so that its header is not needed; a program
// of yours includes onnxruntime_c_api.h instead.

#include <onelane.hpp>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <thread>

namespace ort {

// Places in OrtApi, which never change.
enum Place {
  GetErrorMessage = 2,
  CreateEnv = 3,
  CreateSession = 7,
  Run = 9,
  CreateSessionOptions = 10,
  CreateTensorWithData = 49,
  GetTensorMutableData = 51,
  CreateCpuMemoryInfo = 69,
  ReleaseEnv = 92,
  ReleaseStatus = 93,
  ReleaseMemoryInfo = 94,
  ReleaseSession = 95,
  ReleaseValue = 96,
  ReleaseSessionOptions = 100,
};
constexpr std::uint32_t kVersion = 17;
constexpr int kWarning = 2, kArenaAllocator = 1, kDefaultMemory = 0, kFloat = 1;

using Table = void *const *;

struct Base {
  Table (*get_api)(std::uint32_t version);
  const char *(*version)();
};

/// Calls a function that returns a status; a status that is not null is thrown.
template <class... Args>
void call(Table api, Place place, Args... args) {
  void *status = reinterpret_cast<void *(*)(Args...)>(api[place])(args...);
  if (status == nullptr) return;
  const std::string text = reinterpret_cast<const char *(*)(void *)>(api[GetErrorMessage])(status);
  reinterpret_cast<void (*)(void *)>(api[ReleaseStatus])(status);
  throw std::runtime_error("ONNX Runtime: " + text);
}

}  // namespace ort

using Row = std::array<float, 4>;

/// Built, called and destroyed on the worker.
class Session {
 public:
  Session(ort::Table api, const char *model) : api_(api) {
    ort::call(api_, ort::CreateEnv, ort::kWarning, "onelane", &env_);
    ort::call(api_, ort::CreateSessionOptions, &options_);
    ort::call(api_, ort::CreateSession, env_, model, options_, &session_);
    ort::call(api_, ort::CreateCpuMemoryInfo, ort::kArenaAllocator, ort::kDefaultMemory, &memory_);
  }
  ~Session() {
    release(ort::ReleaseMemoryInfo, memory_);
    release(ort::ReleaseSession, session_);
    release(ort::ReleaseSessionOptions, options_);
    release(ort::ReleaseEnv, env_);
  }
  Session(const Session &) = delete;

  std::vector<float> operator()(const onelane::Batch<Row> &rows) {
    std::vector<Row> data(rows.begin(), rows.end());
    const std::array<std::int64_t, 2> shape = {std::int64_t(data.size()), 4};
    void *input = nullptr, *output = nullptr;
    ort::call(api_, ort::CreateTensorWithData, memory_, static_cast<void *>(data.data()),
              data.size() * sizeof(Row), shape.data(), shape.size(), ort::kFloat, &input);
    const char *const inputs[] = {"x"}, *const outputs[] = {"y"};
    try {
      ort::call(api_, ort::Run, session_, static_cast<void *>(nullptr), inputs,
                static_cast<void *const *>(&input), std::size_t(1), outputs, std::size_t(1),
                &output);
      float *sums = nullptr;
      ort::call(api_, ort::GetTensorMutableData, output, &sums);
      std::vector<float> answers(sums, sums + data.size());
      release(ort::ReleaseValue, output);
      release(ort::ReleaseValue, input);
      return answers;
    } catch (...) {
      release(ort::ReleaseValue, input);
      throw;
    }
  }

 private:
  void release(ort::Place place, void *object) {
    if (object != nullptr) reinterpret_cast<void (*)(void *)>(api_[place])(object);
  }

  ort::Table api_;
  void *env_ = nullptr, *options_ = nullptr, *session_ = nullptr, *memory_ = nullptr;
};

int main(int argc, char **argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: onnx_session LIBONNXRUNTIME MODEL\n");
    return 2;
  }
  void *library = dlopen(argv[1], RTLD_NOW);
  void *symbol = library == nullptr ? nullptr : dlsym(library, "OrtGetApiBase");
  if (symbol == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto *base = reinterpret_cast<const ort::Base *(*)()>(symbol)();
  const ort::Table api = base->get_api(ort::kVersion);
  const char *model = argv[2];

  const auto device = onelane::DeviceExecutor::shared("onnx");
  const onelane::BatchQueue<Row, float> queue(device, {}, [=] { return Session(api, model); });
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      for (int at = 0; at < 200; ++at) {
        const Row row = {float(thread), float(at), 1, 2};
        if (queue.submit(row).get() != float(thread + at + 3)) std::abort();
      }
    });
  }
  for (auto &thread : threads) thread.join();

  try {
    onelane::BatchQueue<Row, float>(device, {}, [=] { return Session(api, "no such model"); });
    return 1;
  } catch (const std::runtime_error &e) {
    std::printf("a model that is not there: %.60s...\n", e.what());
  }
  const auto stats = queue.stats();
  std::printf("ONNX Runtime %s: %llu rows from 8 threads, in %llu runs of the session\n",
              base->version(), static_cast<unsigned long long>(stats.completed),
              static_cast<unsigned long long>(stats.batches));
}
