# The C and C++ side. `make capi PREFIX=DIR` installs it; the rest are its tests.

comma := ,
PREFIX ?= target/capi/prefix
CAPI := target/capi
CAPI_PREFIX := $(abspath $(CAPI)/prefix)
CXX ?= g++
CAPI_FLAGS = -g -Wall -Wextra -Werror -I$(CAPI_PREFIX)/include/onelane -pthread
CAPI_LINK = -L$(CAPI_PREFIX)/lib -lonelane -Wl,-rpath,$(CAPI_PREFIX)/lib
TORCH = $(shell $(BIN)/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
TORCH_LINK = -L$(TORCH)/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -Wl,-rpath,$(TORCH)/lib

.PHONY: capi capi-prefix capi-header test-capi test-capi-cpp capi-examples capi-overhead capi-asan capi-tsan \
    capi-valgrind capi-macos

capi: ## libonelane, its headers, pkg-config and CMake files, into PREFIX
	cargo build --release --locked -p onelane-capi
	crates/capi/install.sh target/release $(PREFIX)

capi-header: ## writes onelane.h anew
	ONELANE_WRITE_HEADER=1 cargo test --release --locked -p onelane-capi --test it header::

capi-prefix:
	@$(MAKE) --no-print-directory capi PREFIX=$(CAPI_PREFIX)

# A machine may have no compiler for C++: then this says so and passes.
test-capi: package ## the C and C++ tests and examples; needs a compiler for C++20
	@if command -v $(CXX) >/dev/null; then $(MAKE) --no-print-directory test-capi-cpp; \
	else echo "SKIPPED: there is no C++ compiler ($(CXX)); the C and C++ tests were not run"; fi

test-capi-cpp: $(CAPI)/core_test $(CAPI)/torch_test capi-examples
	$(CAPI)/core_test
	$(CAPI)/torch_test
	ONELANE_LIBRARY=$(CAPI_PREFIX)/lib/libonelane.so.1 $(BIN)/python -m pytest -q crates/capi/tests

$(CAPI)/core_test: crates/capi/tests/cpp/core_test.cpp crates/capi/tests/cpp/check.hpp capi-prefix
	$(CXX) -std=c++17 -O1 $(CAPI_FLAGS) $< -o $@ $(CAPI_LINK)

# Two files, since libtorch's headers take long to compile.
$(CAPI)/mps_batch_queue.o: crates/capi/torch/MPSBatchQueue.cpp capi-prefix
	$(CXX) -std=c++20 -O1 $(CAPI_FLAGS) -isystem $(TORCH)/include -c $< -o $@

$(CAPI)/torch_test: crates/capi/tests/cpp/torch_test.cpp $(CAPI)/mps_batch_queue.o
	$(CXX) -std=c++20 -O0 $(CAPI_FLAGS) -isystem $(TORCH)/include $^ -o $@ $(CAPI_LINK) $(TORCH_LINK)

CAPI_EXAMPLES := crates/capi/examples
# These need no libtorch.
.PHONY: capi-examples-core
capi-examples-core: capi-prefix
	$(CC) -std=c99 $(CAPI_FLAGS) $(CAPI_EXAMPLES)/affine.c -o $(CAPI)/affine $(CAPI_LINK)
	$(CXX) -std=c++17 $(CAPI_FLAGS) $(CAPI_EXAMPLES)/llama_shape.cpp -o $(CAPI)/llama_shape $(CAPI_LINK)

capi-examples: capi-examples-core $(CAPI)/mps_batch_queue.o
	$(CXX) -std=c++20 $(CAPI_FLAGS) -isystem $(TORCH)/include $(CAPI_EXAMPLES)/libtorch_mlp.cpp \
	    $(CAPI)/mps_batch_queue.o -o $(CAPI)/libtorch_mlp $(CAPI_LINK) $(TORCH_LINK)
	$(CAPI)/affine
	$(CAPI)/llama_shape
	$(CAPI)/libtorch_mlp

# Not in `test-capi`: it needs ONNX Runtime from PyPI, and its C header.
ONNX_VENV := $(CAPI)/onnx-venv
.PHONY: capi-onnxruntime
capi-onnxruntime: capi-prefix ## the example with an ONNX Runtime session
	test -x $(ONNX_VENV)/bin/python || $(PYTHON) -m venv $(ONNX_VENV)
	$(ONNX_VENV)/bin/python -m pip install --quiet onnxruntime onnx numpy
	$(ONNX_VENV)/bin/python $(CAPI_EXAMPLES)/onnx_session.py $(CAPI)/sum.onnx > $(CAPI)/onnxruntime.path
	$(CXX) -std=c++17 $(CAPI_FLAGS) $(CAPI_EXAMPLES)/onnx_session.cpp -o $(CAPI)/onnx_session $(CAPI_LINK) -ldl
	$(CAPI)/onnx_session $$(cat $(CAPI)/onnxruntime.path) $(CAPI)/sum.onnx

capi-overhead: capi-prefix ## what a request costs, beside a hand-written queue; wants a quiet machine
	$(CXX) -std=c++17 -O2 $(CAPI_FLAGS) crates/capi/tests/cpp/overhead.cpp -o $(CAPI)/overhead $(CAPI_LINK)
	$(CAPI)/overhead

# Under these a test takes many times as long.
CAPI_SLOW = ONELANE_HANG_SECONDS=600
CAPI_ASAN = -g -fsanitize=address,undefined -fno-sanitize-recover=all
capi-asan: capi-prefix ## the C++ tests and examples under AddressSanitizer and UBSan
	$(CC) -std=c99 -O1 $(CAPI_FLAGS) $(CAPI_ASAN) $(CAPI_EXAMPLES)/affine.c \
	    -o $(CAPI)/affine_asan $(CAPI_LINK)
	$(CXX) -std=c++17 -O1 $(CAPI_FLAGS) $(CAPI_ASAN) $(CAPI_EXAMPLES)/llama_shape.cpp \
	    -o $(CAPI)/llama_shape_asan $(CAPI_LINK)
	$(CXX) -std=c++17 -O1 $(CAPI_FLAGS) $(CAPI_ASAN) crates/capi/tests/cpp/core_test.cpp \
	    -o $(CAPI)/core_test_asan $(CAPI_LINK)
	for program in affine llama_shape core_test; do $(CAPI_SLOW) $(CAPI)/$${program}_asan || exit 1; done

# Not in `capi-asan`: it needs libtorch, and its headers take long to compile.
.PHONY: capi-asan-torch
capi-asan-torch: capi-prefix ## MPSBatchQueue and its tests under AddressSanitizer and UBSan
	$(CXX) -std=c++20 -O0 $(CAPI_FLAGS) $(CAPI_ASAN) -isystem $(TORCH)/include \
	    crates/capi/tests/cpp/torch_test.cpp crates/capi/torch/MPSBatchQueue.cpp -o $(CAPI)/torch_test_asan $(CAPI_LINK) $(TORCH_LINK)
	$(CAPI_SLOW) $(CAPI)/torch_test_asan

# Threads take turns fairly: else those that only submit keep the worker from its turn.
capi-valgrind: $(CAPI)/core_test capi-examples-core ## the C++ tests and examples without libtorch under Valgrind
	for program in affine llama_shape core_test; do \
	    $(CAPI_SLOW) valgrind --quiet --fair-sched=yes --error-exitcode=9 \
	    --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite $(CAPI)/$$program || exit 1; done

# The library itself is instrumented, too: else its atomics would not be seen. The runtime is Rust's,
# which is newer than that of most compilers for C++.
CAPI_TSAN = RUSTFLAGS="-Zsanitizer=thread" CARGO_TARGET_DIR=$(PROOFS)/tsan \
    cargo +$(NIGHTLY) rustc --locked -p onelane-capi --crate-type staticlib \
    -Zbuild-std --target x86_64-unknown-linux-gnu
CAPI_TSAN_RUNTIME = $$(rustc +$(NIGHTLY) --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/lib/librustc-nightly_rt.tsan.a
capi-tsan: capi-prefix ## the C++ tests under ThreadSanitizer
	$(CXX) -std=c++17 -O1 $(CAPI_FLAGS) -fsanitize=thread -c crates/capi/tests/cpp/core_test.cpp -o $(CAPI)/core_test_tsan.o
	$(call with_nightly,rust-src,$(CAPI_TSAN) && \
	    $(CXX) $(CAPI)/core_test_tsan.o $(PROOFS)/tsan/x86_64-unknown-linux-gnu/debug/libonelane_capi.a \
	    -Wl$(comma)--whole-archive $(CAPI_TSAN_RUNTIME) -Wl$(comma)--no-whole-archive -Wl$(comma)--export-dynamic \
	    -ldl -lpthread -lrt -lm -o $(CAPI)/core_test_tsan && \
	    $(CAPI_SLOW) TSAN_OPTIONS="suppressions=crates/capi/tests/cpp/tsan.supp" setarch -R $(CAPI)/core_test_tsan)

.PHONY: patch-038
patch-038: ## writes patches/038-mps-batch-queue.patch anew
	$(PYTHON) crates/capi/pytorch/make_patch.py

# No Mac is needed: everything is compiled and linked for one, and nothing is run.
MAC := $(CAPI)/macos
MAC_TORCH := 2.15.0
MAC_ZIG = $(abspath $(MAC)/venv/lib/$(notdir $(wildcard $(MAC)/venv/lib/python*))/site-packages/ziglang/zig)
MAC_CXX = $(MAC_ZIG) c++ -target aarch64-macos.14.0 -g0 -w -I$(MAC)/prefix/include/onelane
capi-macos: ## compiles and links libonelane, MPSBatchQueue.mm and the tests for macOS arm64
	rustup target add aarch64-apple-darwin
	test -x $(MAC)/venv/bin/python || $(PYTHON) -m venv $(MAC)/venv
	$(MAC)/venv/bin/python -m pip install --quiet ziglang
	test -d $(MAC)/torch || { $(MAC)/venv/bin/python -m pip download --quiet --no-deps --only-binary=:all: \
	    --platform macosx_14_0_arm64 --dest $(MAC) torch==$(MAC_TORCH) && \
	    $(PYTHON) -m zipfile -e $(MAC)/torch-$(MAC_TORCH)-*.whl $(MAC); }
	$(MAKE) --no-print-directory capi-macos-link

.PHONY: capi-macos-link
capi-macos-link:
	ZIG=$(MAC_ZIG) SDKROOT=$(MAC_SDK) \
	CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$(abspath crates/capi/macos/zig-cc) \
	    CARGO_TARGET_DIR=$(MAC)/target cargo build --release --locked --target aarch64-apple-darwin -p onelane-capi
	crates/capi/install.sh $(MAC)/target/aarch64-apple-darwin/release $(MAC)/prefix dylib
	$(MAC_CXX) -std=c++17 crates/capi/tests/cpp/core_test.cpp -o $(MAC)/core_test -L$(MAC)/prefix/lib -lonelane
	$(MAC_CXX) -std=c++20 -I$(MAC)/torch/include crates/capi/tests/cpp/torch_test.cpp \
	    $(MAC)/prefix/share/onelane/MPSBatchQueue.mm -o $(MAC)/torch_test -L$(MAC)/prefix/lib -lonelane \
	    -L$(MAC)/torch/lib -ltorch -ltorch_cpu -lc10 -L$(MAC_SDK)/usr/lib -lobjc
	$(PYTHON) crates/capi/pytorch/make_patch.py --check
	rm -rf $(MAC)/pytorch && mkdir -p $(MAC)/pytorch && patch -s -p1 -d $(MAC)/pytorch < patches/038-mps-batch-queue.patch
	$(MAC_CXX) -std=c++20 -I$(MAC)/pytorch/aten/src -I$(MAC)/torch/include -c \
	    $(MAC)/pytorch/aten/src/ATen/mps/MPSBatchQueue.mm -o $(MAC)/patch038.o
	@for file in prefix/lib/libonelane.1.dylib core_test torch_test; do \
	    $(PYTHON) crates/capi/macos/is_macho.py $(MAC)/$$file; done
