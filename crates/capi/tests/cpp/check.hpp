// What the C++ tests share: a check that says where, tests by name, and a hang that is a failure.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);     \
      std::exit(1);                                                            \
    }                                                                          \
  } while (false)

/// The expression throws exactly this type; gives its text.
#define CHECK_THROWS(type, expression)                                         \
  [&]() -> std::string {                                                       \
    try {                                                                      \
      static_cast<void>(expression);                                           \
    } catch (const std::exception &e) {                                        \
      CHECK(typeid(e) == typeid(type));                                        \
      return e.what();                                                         \
    }                                                                          \
    CHECK(!"it threw nothing");                                                \
    return {};                                                                 \
  }()

struct Test {
  const char *name;
  std::function<void()> body;
};

/// A test that runs so long hangs. Valgrind and the sanitizers are given more by ONELANE_HANG_SECONDS.
inline unsigned hang_seconds() {
  const char *asked = std::getenv("ONELANE_HANG_SECONDS");
  return asked == nullptr ? 100 : static_cast<unsigned>(std::atoi(asked));
}

inline int run_tests(const std::vector<Test> &tests) {
  for (const Test &test : tests) {
    alarm(hang_seconds());  // A hang is a failure: SIGALRM ends the process.
    test.body();
    std::printf("ok   %s\n", test.name);
    std::fflush(stdout);
  }
  return 0;
}
