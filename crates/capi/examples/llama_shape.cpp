// The shape of llama.cpp: one model, one context that only one thread may use, prompts that wait
// together are sequences of one llama_batch.
//
// llama.cpp itself is not needed: below is a stand-in with its names, which ends the program if its
// context is used on another thread. With the real library, drop the stand-in and include llama.h.

#include <onelane.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

// ---- stand-in -----------------------------------------------------------------------------------
using llama_token = std::int32_t;
using llama_seq_id = std::int32_t;

struct llama_model {
  int vocabulary = 97;
};

struct llama_context {
  llama_model *model;
  std::thread::id home = std::this_thread::get_id();
  std::vector<std::vector<float>> logits;
};

struct llama_batch {
  std::vector<llama_token> token;
  std::vector<llama_seq_id> seq_id;
  std::vector<bool> logits;
};

static void at_home(const llama_context *context) {
  if (context->home == std::this_thread::get_id()) return;
  std::fprintf(stderr, "a llama_context was used on another thread\n");
  std::abort();
}

static llama_model *llama_model_load_from_file(const char *) { return new llama_model; }
static void llama_model_free(llama_model *model) { delete model; }
static llama_context *llama_init_from_model(llama_model *model) {
  return new llama_context{model, std::this_thread::get_id(), {}};
}
static void llama_free(llama_context *context) {
  at_home(context);
  delete context;
}
/// The "network": the logits of a sequence name the sum of its tokens.
static int llama_decode(llama_context *context, const llama_batch &batch) {
  at_home(context);
  context->logits.assign(batch.token.size(), {});
  std::vector<int> sums(batch.token.size());
  for (std::size_t at = 0; at < batch.token.size(); ++at) {
    int &sum = sums[std::size_t(batch.seq_id[at])];
    sum += batch.token[at];
    if (!batch.logits[at]) continue;
    context->logits[at].assign(std::size_t(context->model->vocabulary), 0);
    context->logits[at][std::size_t(sum % context->model->vocabulary)] = 1;
  }
  return 0;
}
static const float *llama_get_logits_ith(llama_context *context, int at) {
  at_home(context);
  return context->logits[std::size_t(at)].data();
}
// -------------------------------------------------------------------------------------------------

using Prompt = std::vector<llama_token>;

/// What a prompt weighs: a batch has at most as many tokens as the context takes.
template <>
struct onelane::BatchTraits<Prompt> {
  static std::uint64_t key(const Prompt &) noexcept { return 0; }
  static std::size_t cost(const Prompt &prompt) noexcept { return prompt.size(); }
};

/// Built, called and destroyed on the worker; the context never leaves it.
class Llama {
 public:
  explicit Llama(const char *path)
      : model_(llama_model_load_from_file(path)), context_(llama_init_from_model(model_)) {
    if (context_ == nullptr) throw std::runtime_error("the model could not be loaded");
  }
  ~Llama() {
    llama_free(context_);
    llama_model_free(model_);
  }
  Llama(const Llama &) = delete;

  /// The next token of each prompt.
  std::vector<llama_token> operator()(const onelane::Batch<Prompt> &prompts) {
    llama_batch batch;
    std::vector<int> last;
    for (std::size_t sequence = 0; sequence < prompts.size(); ++sequence) {
      for (llama_token token : prompts[sequence]) {
        batch.token.push_back(token);
        batch.seq_id.push_back(llama_seq_id(sequence));
        batch.logits.push_back(false);
      }
      batch.logits.back() = true;
      last.push_back(int(batch.token.size()) - 1);
    }
    if (llama_decode(context_, batch) != 0) throw std::runtime_error("llama_decode failed");
    std::vector<llama_token> next;
    for (int at : last) {
      const float *logits = llama_get_logits_ith(context_, at);
      next.push_back(llama_token(std::max_element(logits, logits + model_->vocabulary) - logits));
    }
    return next;
  }

 private:
  llama_model *model_;
  llama_context *context_;
};

int main() {
  const auto device = onelane::DeviceExecutor::shared("metal:0");
  onelane::QueueConfig config;
  config.name = "llama";
  config.max_batch_cost = 512;  // Tokens: n_batch of the context.
  const onelane::BatchQueue<Prompt, llama_token> queue(device, config,
                                                       [] { return Llama("model.gguf"); });
  std::vector<std::thread> users;
  for (int user = 0; user < 8; ++user) {
    users.emplace_back([&, user] {
      Prompt text = {user + 1, 2, 3};
      for (int step = 0; step < 50; ++step) {
        int sum = 0;
        for (llama_token token : text) sum += token;
        text.push_back(queue.infer(text));
        if (text.back() != sum % 97) std::abort();
      }
    });
  }
  for (auto &user : users) user.join();
  const auto stats = queue.stats();
  std::printf("%llu tokens for 8 users, in %llu calls of llama_decode, all on one thread\n",
              static_cast<unsigned long long>(stats.completed),
              static_cast<unsigned long long>(stats.batches));
}
