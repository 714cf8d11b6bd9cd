#!/bin/sh
# Installs a build, then uses it as others do: install.sh CMAKE BUILD_DIR CC.
set -eu
cmake=$1 build=$2 cc=$3
consumer=$(dirname "$(realpath "$0")")/consumer
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

use_package() { # PREFIX
    echo "find_package in $1"
    "$cmake" -S "$consumer" -B "$1-package" -DCMAKE_PREFIX_PATH="$1" -DCMAKE_C_COMPILER="$cc" \
        >"$out/log" && "$cmake" --build "$1-package" >>"$out/log" || { cat "$out/log"; exit 1; }
    "$1-package/consumer_static"
    "$1-package/consumer_shared"
}

use_pkg_config() { # PREFIX
    echo "pkg-config in $1"
    PKG_CONFIG_PATH=$(dirname "$(find "$1" -name pagedkv.pc)")
    export PKG_CONFIG_PATH
    libdir=$(pkg-config --variable=libdir pagedkv)
    shared=$(pkg-config --cflags --libs pagedkv)
    static=$(pkg-config --cflags --libs --static pagedkv | sed 's/-lpagedkv/-l:libpagedkv.a/')
    # Unquoted on purpose: these are lists of flags.
    $cc -std=c99 "$consumer/main.c" $shared -o "$out/shared"
    LD_LIBRARY_PATH=$libdir "$out/shared"
    $cc -std=c99 "$consumer/main.c" $static -o "$out/static"
    "$out/static"
}

"$cmake" --install "$build" --prefix "$out/first" >"$out/log" || { cat "$out/log"; exit 1; }
use_package "$out/first"
use_pkg_config "$out/first"
mv "$out/first" "$out/moved" # the installed tree may lie anywhere
use_package "$out/moved"
use_pkg_config "$out/moved"
