# The two commands: `make run` and `make test`.  Each installs what it lacks.
# CMake does the building (CMakeLists.txt); this file only spares typing.

JOBS := $(shell nproc 2>/dev/null || echo 2)
PREFIX ?= /usr/local
ARGS ?=

build = cmake --build $(1) --parallel $(JOBS) $(if $(V),--verbose,-- --no-print-directory -s)
configure = cmake -S . -B $(1) $(2) $(if $(V),,--log-level=WARNING >/dev/null)

.PHONY: all run test test-cuda bench fuzz cuda install clean deps deps-test deps-fuzz

all:
	@$(call configure,build)
	@$(call build,build) $(if $(V),,>/dev/null)

# A serving trace through a paged KV cache, every byte checked.
run: deps all
	@build/pagedkv replay $(ARGS)

bench: deps all
	@build/pagedkv bench $(ARGS)

# With the device code where nvcc is; without it the library says so when a device is opened.
with_cuda := $(if $(shell command -v nvcc),-DPKV_CUDA=ON)

# Release, then with the address and undefined-behaviour sanitizers, then with
# the thread sanitizer (whose runtime does not know OpenMP); then the Python package.
test: deps-test
	$(if $(with_cuda),,@echo "no nvcc here: the device code for GPUs is not compiled")
	@$(call configure,build/test/release,-DPKV_TESTS=ON $(with_cuda))
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

# On a machine with an NVIDIA GPU: the device's tests on it.  Exit status 77 where there is none.
test-cuda: deps-test
	@command -v nvcc >/dev/null || { echo "make test-cuda: nvcc is not there" >&2; exit 4; }
	@$(call configure,build/test/cuda,-DPKV_TESTS=ON -DPKV_CUDA=ON)
	@$(call build,build/test/cuda)
	@scripts/test-cuda build/test/cuda

# libFuzzer on each target for FUZZ_SECONDS; needs clang.
FUZZ_SECONDS ?= 60
fuzz: deps-fuzz
	@$(call configure,build/fuzz,-DPKV_FUZZ=ON -DPKV_CLI=OFF -DPKV_OPENMP=OFF -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPKV_SANITIZE=fuzzer-no-link$(comma)address$(comma)undefined)
	@$(call build,build/fuzz) $(if $(V),,>/dev/null)
	@scripts/fuzz build/fuzz $(FUZZ_SECONDS)

# The same with the device code for NVIDIA GPUs, which nvcc makes; a build without nvcc stays as it is.
cuda:
	@command -v nvcc >/dev/null || { echo "make cuda: nvcc is not there" >&2; exit 4; }
	@$(call configure,build,-DPKV_CUDA=ON)
	@$(call build,build) $(if $(V),,>/dev/null)
	@echo "build/pagedkv and the library have device code now; \`pagedkv info' says for which device"

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
