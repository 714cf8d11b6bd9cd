#!/bin/sh
# The library without CMake: one_line_build.sh CC [EMULATOR].  One command, no
# warnings, and it runs.
set -eu
cc=$1
here=$(dirname "$(realpath "$0")")
cd "$here/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

$cc -std=c11 -O2 -fvisibility=hidden -Wall -Wextra -Iinclude src/*.c src/cpu/*.c \
    src/cuda/*.c -shared -fPIC -ldl -o "$out/libpagedkv.so" 2>"$out/log"
if [ -s "$out/log" ]; then
    cat "$out/log"
    exit 1
fi
$cc -std=c99 -Wall -Werror -Iinclude "$here/consumer/main.c" -L"$out" -lpagedkv -o "$out/main"
# shellcheck disable=SC2086
LD_LIBRARY_PATH=$out ${2:-} "$out/main"
