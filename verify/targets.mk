# The proofs. Each has a small size for every push and a full one: `make loom VERIFY=full`.
# docs/verification.md says what each of them shows, and what it does not.

VERIFY ?= small
# The toolchain of the checks that need a nightly compiler.
NIGHTLY ?= nightly-2026-10-29
# Sanitizers, models and Miri build the core with flags of their own: apart from everything else.
PROOFS ?= target/proofs

ifeq ($(VERIFY),full)
LOOM_MORE := 1
CHAOS_SECONDS := 600
ISOLATED_SECONDS := 600
OVERLOAD_SECONDS := 60
CASES := 20000
MUTANTS_PART :=
MIRI_TESTS := lib $(filter-out common main,$(basename $(notdir $(wildcard crates/onelane/tests/it/*.rs)))) simulation
MIRI_CASES := 8
else
LOOM_MORE := 0
CHAOS_SECONDS := 30
ISOLATED_SECONDS := 15
OVERLOAD_SECONDS := 20
CASES := 1000
MUTANTS_PART = --sharding round-robin --shard $(MUTANTS_SHARD)
# Miri is about a thousand times slower than the machine.
MIRI_TESTS := lib cancel
MIRI_CASES := 2
endif
SEED ?= 1
# Which part of the mutants the small size takes; MUTANTS_FLAGS says more: `--list`, `--re fifo`.
MUTANTS_SHARD ?= 0/16
MUTANTS_FLAGS ?=

.PHONY: verify loom miri tsan chaos overload mutants fuzz python-debug

verify: loom fuzz tsan miri chaos mutants ## every proof

loom: ## model checks of the real core: every interleaving up to a bound
	RUSTFLAGS="--cfg loom" LOOM_MORE=$(LOOM_MORE) RUST_BACKTRACE=0 CARGO_TARGET_DIR=$(PROOFS)/loom \
	    cargo test -p onelane --release --lib --locked loom_tests -- --nocapture --test-threads=2
	RUSTFLAGS="--cfg loom" LOOM_MORE=$(LOOM_MORE) RUST_BACKTRACE=0 CARGO_TARGET_DIR=$(PROOFS)/loom \
	    cargo test -p onelane-isolate --release --lib --locked models -- --nocapture --test-threads=2

# Miri and ThreadSanitizer need a nightly compiler. CI may run where none can be fetched: then they
# say so and pass. `$(call with_nightly,COMPONENTS,COMMAND)`
NIGHTLY_HAS = rustup component list --toolchain $(NIGHTLY) --installed 2>/dev/null | grep -qE '^$(1)(-|$$)'
with_nightly = @if { $(foreach part,$(1),$(call NIGHTLY_HAS,$(part)) &&) true; } || \
    rustup toolchain install $(NIGHTLY) --no-self-update --profile minimal $(addprefix -c ,$(1)); \
    then $(2); \
    else echo "SKIPPED: the nightly toolchain could not be installed ($@, $(NIGHTLY))"; fi

# An interpreter uses one core, so two groups of tests run at once.
MIRI = MAKEFLAGS= MIRIFLAGS="-Zmiri-disable-isolation" RUST_BACKTRACE=0 PROPTEST_CASES=$(MIRI_CASES) \
    CARGO_TARGET_DIR=$(PROOFS)/miri cargo +$(NIGHTLY) miri test --locked -p onelane
MIRI_GROUP = $(if $(filter lib,$(1)),--lib,--test it $(1)::)

miri: ## the core's tests in an interpreter that sees undefined behaviour
	$(call with_nightly,miri rust-src,$(MIRI) --no-run --lib --test it && \
	    $(MAKE) --no-print-directory -j2 $(if $(filter-out 3.%,$(MAKE_VERSION)),-O) $(addprefix miri-,$(MIRI_TESTS)))

miri-%:
	@$(MIRI) -q $(call MIRI_GROUP,$*) -- --test-threads=1

TSAN = RUSTFLAGS="-Zsanitizer=thread" RUST_BACKTRACE=0 PROPTEST_CASES=16 CARGO_TARGET_DIR=$(PROOFS)/tsan \
    cargo +$(NIGHTLY) test --locked -p onelane -Zbuild-std \
    --target $$(rustc -vV | sed -n 's/^host: //p') --tests

tsan: ## the core's tests under ThreadSanitizer
	$(call with_nightly,rust-src,$(TSAN))

# As the tests of the workspace build it: alone it would have other features, and all be built once more.
ONELANE_BENCH = cargo test --release --workspace --locked -q --no-run && target/release/onelane-bench

chaos: ## real threads and tasks, random faults, shutdowns and restarts; nothing may be lost
	$(ONELANE_BENCH) chaos --seconds $(CHAOS_SECONDS) --seed $(SEED)
	$(ONELANE_BENCH) chaos --seconds 10 --seed $(SEED) --workers 2
	$(ONELANE_BENCH) chaos --isolate --seconds $(ISOLATED_SECONDS) --seed $(SEED)

overload: ## goodput, refusals and latency at 0.5 to 4 times the capacity; draws docs/overload.svg
	$(ONELANE_BENCH) chaos --overload --seconds $(OVERLOAD_SECONDS) \
	    --csv docs/overload.csv --svg docs/overload.svg

# It needs CPython's debug build and, for CPython's own tests of executors, its test package: Debian's
# python3-dbg and libpython3-testsuite.
DEBUG_PYTHON ?= python3.11-dbg
python-debug: package ## the Python front where CPython checks reference counts and the collector's lists
	PYTHONPATH=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))') \
	    $(DEBUG_PYTHON) -X faulthandler -m pytest $(addprefix tests/test_,executor.py batch_queue.py \
	    collate.py pad.py failure.py future.py aio.py lifecycle.py guard.py mps_batch_queue.py leaks.py)

# A folder for what is built, so that dependencies are built once; the tree itself is copied, not
# changed. Exit code 3 of cargo-mutants: everything was noticed, some of it by a test that hung.
MUTANTS = target/tools/bin/cargo-mutants
$(MUTANTS):
	cargo install cargo-mutants --locked --root target/tools

mutants: $(MUTANTS) ## small changes of the core's decisions: each is noticed by a test
	PROPTEST_CASES=256 PROPTEST_MAX_SHRINK_ITERS=0 RUST_BACKTRACE=0 CARGO_TARGET_DIR=$(abspath $(PROOFS)/mutants) \
	    $(MUTANTS) mutants --package onelane -j1 --output $(PROOFS) $(MUTANTS_PART) $(MUTANTS_FLAGS) || test $$? -eq 3

fuzz: ## random workloads against a reference, random text against everything that parses
	PROPTEST_CASES=$(CASES) cargo test --workspace --release --locked --test it simulation::
	PROPTEST_CASES=$(CASES) cargo test --workspace --release --locked --test it parsing::
	CASES=$(CASES) RUST_BACKTRACE=0 cargo test --workspace --release --locked --test it random_damage::
