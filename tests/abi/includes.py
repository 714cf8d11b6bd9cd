"""Who may include what, by folder: arrows point one way.  And no line is too long."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#\s*include\s+(<[^>]+>|"[^"]+")', re.MULTILINE)
PUBLIC = "<pagedkv/pagedkv.h>"
CUDA = "<pagedkv/pagedkv_cuda.h>"

# Files (the first match counts), and what they may include besides headers of the system:
# "own" is any file of the same folder.  The planner works without any kernel, the pool
# without the planner.
PLANNER = ['"plan.h"', '"slices.h"', '"internal.h"', PUBLIC]
POOL = ['"pool_state.h"', '"pool_pages.h"', '"allocator.h"', '"extents.h"', '"internal.h"', PUBLIC]
ON_POOL = ['"pool_pages.h"', '"allocator.h"', '"internal.h"', PUBLIC]
RULES = [
    ("python/src/*", ["own", PUBLIC, CUDA, "<Python.h>"]),
    ("include/pagedkv/pagedkv.h", ["<pagedkv/moves.h>", "<pagedkv/pool.h>", "<pagedkv/prefix.h>",
                                   "<pagedkv/sequences.h>"]),
    ("include/pagedkv/moves.h", [PUBLIC]),
    ("include/pagedkv/pool.h", [PUBLIC]),
    ("include/pagedkv/prefix.h", ["<pagedkv/pool.h>"]),
    ("include/pagedkv/sequences.h", ["<pagedkv/prefix.h>"]),
    ("include/pagedkv/pagedkv_cuda.h", [PUBLIC]),
    ("include/pagedkv/*.h", []),
    ("src/extents*", ['"extents.h"']),
    ("src/pool*", POOL),
    ("src/prefix*", ['"prefix_state.h"', *ON_POOL]),
    ("src/seq*", ['"seq_state.h"', '"prefix_state.h"', *ON_POOL]),
    ("src/plan*", PLANNER),
    ("src/step.c", PLANNER),
    ("src/layout.*", ['"layout.h"', '"scales.h"', '"internal.h"', PUBLIC]),
    ("src/scales.*", ['"layout.h"', '"scales.h"', PUBLIC]),
    ("src/parallel.c", ["own", PUBLIC, "<omp.h>"]),
    ("src/cpu/dispatch.c", ["own", PUBLIC]),
    ("src/cpu/cast_body.h", ["own", PUBLIC]),
    ("src/cpu/*", ["own"]),
    ("src/cuda/driver.*", ["own", '"../internal.h"']),
    ("src/cuda/device.*", ["own", PUBLIC, CUDA, '"../internal.h"']),
    ("src/cuda/*kernel.h", ["own", '"../cpu/numbers.h"']),
    ("src/cuda/[ejt]*.h", ["own", PUBLIC, CUDA, '"../cpu/cast.h"']),
    ("src/cuda/*", ["own", PUBLIC, CUDA, '"../internal.h"', '"../calls.h"', '"../geometry.h"',
                    '"../layers.h"', '"../layout.h"', '"../pairs.h"', '"../scales.h"',
                    '"../slices.h"']),
    ("src/runs.h", ["own", '"cpu/kernels.h"']),
    ("src/convert.c", ["own", '"cpu/fpenv.h"']),
    ("src/*", ["own", PUBLIC]),
    ("cli/gpu*", ["own"]),
    ("cli/*", ["own", PUBLIC, CUDA, "<jansson.h>", "<omp.h>"]),
    ("examples/cuda*", [CUDA]),
    ("examples/*", [PUBLIC]),
    ("tests/test_kernels.c", ["own", PUBLIC, '"../src/cpu/kernels.h"', "<cmocka.h>"]),
    ("tests/test_numbers*.c",
     ["own", PUBLIC, '"../src/cpu/kernels.h"', '"../src/cpu/fpenv.h"', "<cmocka.h>"]),
    ("tests/test_geometry.c", ["own", PUBLIC, '"../src/geometry.h"', "<cmocka.h>"]),
    ("tests/test_trace*", ["own", PUBLIC, '"../cli/*"', "<cmocka.h>"]),
    ("tests/test_seq_broken.c",
     ["own", PUBLIC, '"../src/pool_state.h"', '"../src/seq_state.h"', "<cmocka.h>"]),
    ("tests/cuda/*", ["own", PUBLIC, CUDA, '"../../src/*"', '"../../src/cuda/*"', '"../../cli/*"',
                      '"../*"', "<cmocka.h>"]),
    ("tests/abi/header.c", [PUBLIC, CUDA]),
    ("tests/abi/same_bytes.c", [PUBLIC, '"../../src/cpu/cast.h"']),
    ("tests/abi/*", ["own", PUBLIC]),
    ("tests/abi/consumer/*", [PUBLIC]),
    ("tests/plain/*", []),
    ("tests/*", ["own", PUBLIC, "<cmocka.h>"]),
    ("fuzz/*", ["own", PUBLIC, '"../cli/*"', '"../tests/*"', "<cmocka.h>"]),
]
SOURCES = ("*.c", "*.h", "*.def")
OURS = ("<pagedkv/", "<jansson.h>", "<cmocka.h>", "<omp.h>", "<Python.h>")


def allowed(path, name, names):
    if name.startswith("<") and not name.startswith(OURS):
        return True
    plain = name.strip('"<>')
    if name.startswith('"') and "/" not in plain and "own" in names:
        return (path.parent / plain).is_file()
    folder = f'"{plain.rpartition("/")[0]}/*"'
    return name in names or (name.startswith('"') and folder in names)


def check(path):
    relative = path.relative_to(ROOT)
    names = next((n for pattern, n in RULES if relative.match(pattern)), None)
    if names is None:
        print(f"{relative}: no rule for this folder")
        return 1
    bad = [n for n in INCLUDE.findall(path.read_text()) if not allowed(path, n, names)]
    for name in bad:
        print(f"{relative}: may not include {name}")
    return len(bad)


def check_lines(path):
    wrong = [i for i, line in enumerate(path.read_text().splitlines(), 1)
             if len(line) > 100 or "\t" in line]
    for i in wrong:
        print(f"{path.relative_to(ROOT)}:{i}: a tab, or over 100 columns")
    return len(wrong)


def main():
    folders = ("include", "src", "cli", "python", "examples", "tests", "fuzz")
    files = sorted(p for f in folders for s in SOURCES for p in (ROOT / f).rglob(s))
    scripts = sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))
    n_bad = sum(map(check, files)) + sum(map(check_lines, files + scripts))
    print(f"{len(files)} files, {n_bad} wrong includes or lines")
    return 1 if n_bad or not files else 0


if __name__ == "__main__":
    sys.exit(main())
