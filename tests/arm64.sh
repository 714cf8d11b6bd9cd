#!/bin/sh
# The library on AArch64, under an emulator: the one-line build with its small
# program, then test programs of the NEON kernel and of what stands on it.
set -eu
cc=aarch64-linux-gnu-gcc
emulator=qemu-aarch64-static
here=$(dirname "$(realpath "$0")")
cd "$here/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$here/abi/one_line_build.sh" $cc "$emulator -L /usr/aarch64-linux-gnu"

flags="-std=gnu11 -O2 -Wall -Wextra -Wpedantic -Wconversion -Werror -Iinclude -Itests/plain"
for name in kernels update update_layouts; do
    # shellcheck disable=SC2086
    $cc $flags -static src/*.c src/cpu/*.c tests/support.c tests/model.c tests/world.c \
        "tests/test_$name.c" -o "$out/test_$name"
    $emulator "$out/test_$name"
done
grep -q pkv_i_copy_runs_neon "$out/test_kernels" || { echo "no NEON kernel was built"; exit 1; }
