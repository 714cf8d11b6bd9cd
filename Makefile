# The two commands: `make run` and `make test`.  Each installs what it lacks.
# CMake does the building (CMakeLists.txt); this file only spares typing.

JOBS := $(shell nproc 2>/dev/null || echo 2)
PREFIX ?= /usr/local
ARGS ?=

build = cmake --build $(1) --parallel $(JOBS) $(if $(V),--verbose,-- --no-print-directory -s)
configure = cmake -S . -B $(1) $(2) $(if $(V),,--log-level=WARNING >/dev/null)

.PHONY: all run test bench fuzz cuda install clean deps deps-test deps-fuzz

all:
	@$(call configure,build)
	@$(call build,build) $(if $(V),,>/dev/null)

# A serving trace through a paged KV cache, every byte checked.  Waiting threads
# must not spin: on cores that other work wants too, that is ten times slower.
run: deps all
	@OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} build/pagedkv replay $(ARGS)

bench: deps all
	@build/pagedkv bench $(ARGS)

# Release, then with the address and undefined-behaviour sanitizers, then with
# the thread sanitizer (whose runtime does not know OpenMP); then the Python package.
test: deps-test
	@$(call configure,build/test/release,-DPKV_TESTS=ON)
	@$(call build,build/test/release)
	@$(call configure,build/test/asan,-DPKV_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPKV_SANITIZE=address$(comma)undefined)
	@$(call build,build/test/asan)
	@$(call configure,build/test/tsan,-DPKV_TESTS=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPKV_SANITIZE=thread -DPKV_OPENMP=OFF)
	@$(call build,build/test/tsan)
	@for kind in release asan tsan; do \
		echo "== $$kind"; \
		ctest --test-dir build/test/$$kind --output-on-failure --no-tests=error -j $(JOBS) || exit 1; \
	done
	@echo "== python"; scripts/test-python build/test/python

comma := ,

# libFuzzer on each target for FUZZ_SECONDS; needs clang.
FUZZ_SECONDS ?= 60
fuzz: deps-fuzz
	@$(call configure,build/fuzz,-DPKV_FUZZ=ON -DPKV_CLI=OFF -DPKV_OPENMP=OFF -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPKV_SANITIZE=fuzzer-no-link$(comma)address$(comma)undefined)
	@$(call build,build/fuzz) $(if $(V),,>/dev/null)
	@scripts/fuzz build/fuzz $(FUZZ_SECONDS)

cuda:
	@command -v nvcc >/dev/null || { echo "make cuda: nvcc is not there" >&2; exit 4; }
	@echo "make cuda: the CUDA backend is not in this release" >&2; exit 4

install: all
	@cmake --install build --prefix $(PREFIX)

clean:
	@rm -rf build

deps:
	@scripts/install-deps

deps-test:
	@scripts/install-deps test

deps-fuzz:
	@scripts/install-deps fuzz
