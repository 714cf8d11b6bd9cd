#!/bin/sh
# Conversions make the same bytes whatever compiled them: checksums of those in C and of
# those in vectors, by gcc and clang, at levels of optimisation, with leave to fuse products
# and sums and as strict C11.  "same_bytes.sh all": every level in both ways, minutes.
set -eu
here=$(dirname "$(realpath "$0")")
cd "$here/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
sources="tests/abi/same_bytes.c src/cpu/cast_c.c src/cpu/cast_avx2.c src/cpu/cast_neon.c"
fused="-std=gnu17 -march=native -ffp-contract=fast"
fused_levels="-O0 -O3"
strict_levels="-O2"
if [ "${1:-}" = all ]; then
    fused_levels="-O0 -O1 -O2 -O3 -Os"
    strict_levels=$fused_levels
fi

sums() { # CC FLAGS...: into a file of their own
    cc=$1
    shift
    name=$(echo "$cc$*" | tr -d ' ')
    # shellcheck disable=SC2086
    "$cc" "$@" -Iinclude $sources -o "$out/$name.program"
    "$out/$name.program" >"$out/$name.sums" || echo "vectors differ from C" >>"$out/$name.sums"
}

all_of() { # CC
    for level in $fused_levels; do
        # shellcheck disable=SC2086
        sums "$1" $level $fused
    done
    for level in $strict_levels; do
        sums "$1" $level -std=c11
    done
}

jobs=
for cc in gcc clang; do
    command -v $cc >/dev/null || { echo "$cc is missing: not run"; continue; }
    all_of $cc &
    jobs="$jobs $!"
done
for job in $jobs; do
    wait "$job"
done
first=
for file in "$out"/*.sums; do
    first=${first:-$file}
    cmp -s "$first" "$file" && continue
    echo "$(basename "$file" .sums) differs from $(basename "$first" .sums):"
    diff "$first" "$file" || exit 1
done
grep -q differ "$first" && { cat "$first"; exit 1; }
echo "$(wc -l <"$first") checksums, the same $(find "$out" -name '*.sums' | wc -l) times"
