# Userspace bypass. `make` lists the targets.
#
# On a fresh Debian 12 with Rust, `make demo` and `make test` need nothing
# else: scripts/deps installs what is missing (as root or with sudo).

CARGO ?= cargo
# Arguments for the demo, e.g. make demo ARGS='--workload null --kpti off'
ARGS ?=
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
CARGO_FLAGS := --locked
# Folder of the run that `make results` reports.
RUN = target/bench/results

NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)
ifeq ($(NEXTEST),yes)
  NEXTEST_PROFILE := $(if $(CI),ci,default)
  RUN_TESTS = $(CARGO) nextest run $(CARGO_FLAGS) --profile $(NEXTEST_PROFILE)
else
  # cargo test has no groups: one thread keeps the machines from starving each other.
  RUN_TESTS = RUST_TEST_THREADS=1 $(CARGO) test $(CARGO_FLAGS) --no-fail-fast
endif

# Where tests that pass untested, for want of what this machine lacks, say so.
NOT_TESTED := $(abspath $(or $(CARGO_TARGET_DIR),target))/not-tested

# Where scripts/deps unpacks what it does not install, and what is measured there.
UNPACKED = $(or $(UB_CACHE_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/userspace-bypass)/servers/usr
MEASURED := bin/redis-server sbin/nginx bin/memcached bin/sqlite3 \
    lib/x86_64-linux-gnu/libsqlite3.so.0 lib/x86_64-linux-gnu/libc.so.6

# Cargo builds in parallel; the steps of a target are in order.
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.PHONY: help demo payoff results profiler-cost user-cost test test-all lint fmt doc unit vm module bench bench-code bench-translate coverage fuzz deb test-packages clean deps build test-debug-kernel test-intree results-intree check-patches check predict bench-regions

help: ## list the targets
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 21

demo: build ## boot guests, compare native and ub, print the table (needs no arguments)
	@$(RELEASE)/ub-demo $(ARGS)

payoff: deps ## programs of different rhythm, ub against native, counted under -icount (20 minutes)
	$(CARGO) test $(CARGO_FLAGS) -p ub-runtime --test vm_payoff -- --ignored --nocapture --test-threads 1

profiler-cost: deps ## redis-server without and with `ub profile -p`; what `ub predict` takes for its CPU time (2 minutes)
	$(CARGO) test $(CARGO_FLAGS) --release -p ub-runtime --test profile_redis -- --ignored --nocapture --test-threads 1

predict: build ## compare what ub predict says of each workload of the demo with what it then gains
	@$(RELEASE)/ub-demo --predict $(ARGS)

user-cost: build ## count instructions per redis request, native and ub, under -icount
	@$(RELEASE)/ub-demo --user-cost $(ARGS)

results: build ## measure for hours (ARGS=--quick: minutes), write docs/results/ and the README's figures
	@rm -rf $(RUN)
	$(RELEASE)/ub bench --out $(RUN) $(ARGS)
	@mkdir -p docs/results && cp $(RUN)/run.json docs/results
	@$(RELEASE)/ub bench show $(RUN) > docs/results/report.txt
	@$(RELEASE)/ub bench readme $(RUN) --file README.md

test: deps lint doc module ## everything that must pass before a commit lands
	@mkdir -p $(dir $(NOT_TESTED)) && : >$(NOT_TESTED)
	UB_NOT_TESTED=$(NOT_TESTED) $(RUN_TESTS) --workspace
	@sort -u $(NOT_TESTED)

test-all: test ## test, then the tests marked as long (soak, sweeps)
	@scripts/deps long
ifeq ($(NEXTEST),yes)
	$(RUN_TESTS) --workspace --run-ignored only --no-tests pass --success-output immediate
else
	$(RUN_TESTS) --workspace -- --ignored --nocapture --skip fuzz_
endif

# The kernels that the lab builds have no BTF, without which there is no tracing by BPF.
NEXTEST_NEEDS_NO_BTF := test(6_12) - test(profiles) - test(filters_packets)
TEST_NEEDS_NO_BTF := 6_12 --skip profiles --skip filters_packets

test-debug-kernel: deps ## the VM tests on a 6.12 with KASAN, lockdep and kmemleak, built once (20 minutes)
ifeq ($(NEXTEST),yes)
	UB_LAB_KERNEL=debug $(CARGO) nextest run $(CARGO_FLAGS) --profile built-kernel -p ub-runtime -E '$(NEXTEST_NEEDS_NO_BTF)'
else
	UB_LAB_KERNEL=debug $(RUN_TESTS) -p ub-runtime -- $(TEST_NEEDS_NO_BTF)
endif

test-intree: deps ## the VM tests on a 6.12 with the patches of kernel-patch/linux-6.12, built once (20 minutes)
ifeq ($(NEXTEST),yes)
	UB_LAB_KERNEL=in-tree $(CARGO) nextest run $(CARGO_FLAGS) --profile built-kernel -p ub-runtime -E '$(NEXTEST_NEEDS_NO_BTF)'
else
	UB_LAB_KERNEL=in-tree $(RUN_TESTS) -p ub-runtime -- $(TEST_NEEDS_NO_BTF)
endif

results-intree: build ## count instructions with either kind of hooks, write docs/results/in-tree.md (30 minutes)
	$(RELEASE)/ub-demo --in-tree docs/results/in-tree.md $(ARGS)

check-patches: deps ## the patches of kernel-patch/linux-6.12 against the sources: they apply, checkpatch has no word
	@scripts/check-patches

lint: deps ## formatting, clippy and (where installed) cargo-deny; warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGO_FLAGS) --workspace --all-targets --quiet -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    $(CARGO) deny --log-level error --locked check bans licenses sources && \
	    if $(CARGO) deny --log-level off fetch db >/dev/null 2>&1; then \
	        $(CARGO) deny --log-level error --locked check advisories; \
	    else echo 'advisories: not checked: their database cannot be fetched from here'; fi; \
	else \
	    echo 'licences and advisories: not checked; to have it: cargo install cargo-deny --locked'; \
	fi

# Checks beside the compilers'. $(call installed,PROGRAM --version,COMMAND,HOW TO INSTALL,WHAT IS MISSING)
define installed
	@if $(1) >/dev/null 2>&1; then echo '$(2)'; $(2); else echo '$(4): not checked; to have it: $(3)'; fi
endef

check: lint check-patches ## lint and checkpatch, then (where installed) spelling and unused dependencies
	$(call installed,codespell --version,git ls-files -z | xargs -0 codespell,apt-get install codespell,spelling)
	$(call installed,$(CARGO) machete --version,$(CARGO) machete,cargo install cargo-machete --locked,unused dependencies)

fmt: ## format the Rust code
	$(CARGO) fmt --all

doc: deps ## build the API documentation; warnings are errors
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(CARGO_FLAGS) --workspace --no-deps --quiet

unit: deps ## only the tests that need no virtual machine
ifeq ($(NEXTEST),yes)
	$(RUN_TESTS) --workspace -E 'not (test(/(^|::)vm_/) | binary(/^vm/))'
else
	$(RUN_TESTS) --workspace -- --skip vm_
endif

build: deps ## the programs, optimised
	$(CARGO) build $(CARGO_FLAGS) --release -p ub-runtime -p ub-bench -p ub-vm-lab --bins

module: deps ## build the kernel modules for both stock kernels; warnings are errors
	$(CARGO) run $(CARGO_FLAGS) --quiet -p ub-bench --bin ub-demo -- --build-only

bench: deps ## micro-benchmarks of the translator and of translated code, on this CPU
	$(CARGO) bench $(CARGO_FLAGS) -p ub-benches

bench-code: deps ## translated against native code on this CPU, kernel by kernel
	$(CARGO) bench $(CARGO_FLAGS) -p ub-benches --bench kernels

bench-regions: deps ## how the code of running servers comes to be cut into fragments
	$(CARGO) bench $(CARGO_FLAGS) -p ub-benches --bench regions -- $(ARGS)

bench-translate: deps ## how long translation and verification take on this CPU
	$(CARGO) bench $(CARGO_FLAGS) -p ub-benches --bench translation

coverage: build ## share of the instructions of Debian's servers and libraries that is translated
	@$(RELEASE)/ub coverage $(foreach file,$(MEASURED),$(firstword $(wildcard $(addsuffix /$(file),$(UNPACKED) /usr))))

fuzz: deps ## 1,000,000 random programs against the CPU, then 100,000 damaged fragments
	$(CARGO) test $(CARGO_FLAGS) --release -p ub-ring3 --test differential -- \
	    --ignored --nocapture --test-threads 1 fuzz_

deb: ## Debian packages of the ub command and of the kernel modules, in target/deb
	@scripts/deps packaging
	@scripts/build-packages

test-packages: deb ## install the packages in a Debian 12 root and boot it (as root, about 20 minutes)
	@scripts/test-packages

clean: ## remove what was built (downloads stay in the cache folder)
	$(CARGO) clean

deps: ## install the Debian packages that are missing
	@scripts/deps
