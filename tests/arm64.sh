#!/bin/sh
# The library on AArch64, under an emulator: the one-line build with its small
# program, then test programs of the NEON kernel and of what stands on it.
set -eu
cc=aarch64-linux-gnu-gcc
emulator=qemu-aarch64-static
for tool in $cc $emulator; do
    command -v $tool >/dev/null || { echo "$tool is missing: scripts/install-deps test"; exit 1; }
done
here=$(dirname "$(realpath "$0")")
cd "$here/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

"$here/abi/one_line_build.sh" $cc "$emulator -L /usr/aarch64-linux-gnu"

flags="-std=gnu11 -O2 -Wall -Wextra -Wpedantic -Wconversion -Werror -Iinclude -Itests/plain"
build() { # PROGRAM SOURCE...
    program=$out/$1
    shift
    # shellcheck disable=SC2086
    $cc $flags -static src/*.c src/cpu/*.c tests/support.c tests/model.c "$@" -o "$program"
}
for name in kernels update update_layouts; do
    build $name tests/world.c tests/test_$name.c
    $emulator "$out/$name"
done
# Conversions: all numbers; of the shapes a part, for the emulator is slow.
for name in numbers numbers_places convert moves; do
    build $name tests/convert_world.c tests/convert_model.c tests/numbers_model.c \
        tests/test_$name.c -lm
    PAGEDKV_CONVERT_SHAPES=${PAGEDKV_CONVERT_SHAPES:-100} $emulator "$out/$name"
done
build fuzz_update fuzz/fuzz_update.c fuzz/input.c fuzz/replay_main.c
$emulator "$out/fuzz_update" fuzz/corpus/update 2>"$out/log" || { cat "$out/log"; exit 1; }
grep -q pkv_i_cast_neon "$out/numbers" || { echo "no NEON conversions were built"; exit 1; }
grep -q pkv_i_copy_runs_neon "$out/kernels" || { echo "no NEON kernel was built"; exit 1; }
