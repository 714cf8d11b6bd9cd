"""The Python peers of `bench update`: bench_peers.py PROGRAM [unittest options].

A peer that is not there, or fails, costs one note and its rows.  Whether NumPy and PyTorch are
there or not, the program's script runs with modules of ours in their place.
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

SMALL = ("bench", "update", "--quick", "--peers", "auto", "--rounds", 1, "--threads", 1,
         "--pattern", "single")
BOTH = "numpy and index_copy_"
PLAIN = {"pagedkv", "memcpy"}
FRACTIONS = {"numpy": "numpy_fraction", "index_copy_": "index_copy_fraction"}
ENDED, NONSENSE = "it has ended", "an answer that makes no sense"

# Speaks the language of cli/bench_peer.py: gives these answers in order, then ends.
SPEAKER = """#!{python}
import os, struct, sys
says = {says!r}
for i, line in enumerate(says):
    if i > 0:
        header = sys.stdin.buffer.read(16)
        sys.stdin.buffer.read(8 * struct.unpack("2q", header)[1])
    os.write(0, line.encode())
"""

# What the script takes from NumPy and PyTorch, in plain Python; WRONG makes a mistake.
LIBRARY = """
SIZES = {"int16": 2, "bfloat16": 2, "int64": 8, "uint8": 1, "float16": 2, "float32": 4}
globals().update((name, name) for name in SIZES)

class Rows:
    def __init__(self, data, n_rows):
        self.data, self.n_rows = data, n_rows
        self.row_bytes = len(data) // n_rows

    def reshape(self, *shape):
        return Rows(self.data, shape[0])

    def __setitem__(self, slots, new):
        for i, slot in enumerate(slots.data.cast("q")):
            row = bytes(new.data[i * self.row_bytes:(i + 1) * self.row_bytes])
            WRONG
            self.data[slot * self.row_bytes:(slot + 1) * self.row_bytes] = row

    def index_copy_(self, dim, slots, new):
        self[slots] = new

    def __iadd__(self, number):
        self.data[0] ^= number & 255
        return self

    def sum(self):
        return 0

def frombuffer(data, dtype, count, offset):
    data = memoryview(data).cast("B")[offset:offset + count * SIZES[dtype]]
    return Rows(data, count)

def ones(n, dtype):
    return Rows(bytearray(n), n)

def set_num_threads(n):
    pass
"""

program = ""


def can_import(module):
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Peers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def executable(self, text):
        path = self.folder / "python"
        path.write_text(text)
        path.chmod(0o755)
        return path

    def speaker(self, *says):
        return self.executable(SPEAKER.format(python=sys.executable, says=says))

    def libraries(self, wrong="pass"):
        """A folder with both modules."""
        for name in ("numpy", "torch"):
            (self.folder / f"{name}.py").write_text(LIBRARY.replace("WRONG", wrong))
        return self.folder

    def run_bench(self, python, *options, arguments=SMALL, path=""):
        environment = dict(os.environ, PAGEDKV_PYTHON=str(python), PYTHONPATH=str(path))
        return subprocess.run([program, *map(str, (*arguments, *options)), "--json", "-"],
                              env=environment, cwd=self.folder, capture_output=True, text=True,
                              timeout=200, check=False)

    def check(self, impls, notes, python, *options, quiet=False, **more):
        """Status 0, rows of these and no others, these notes before the table."""
        got = self.run_bench(python, *options, *(["--quiet"] if quiet else []), **more)
        self.assertEqual(got.returncode, 0, got.stderr)
        lines = [line for line in got.stderr.splitlines() if line.startswith("pagedkv: ")]
        self.assertEqual(len(lines), len(notes), got.stderr)
        for line, pattern in zip(lines, notes):
            self.assertRegex(line, rf"\Apagedkv: bench: no rows of {pattern}\Z")
        rows = json.loads(got.stdout)
        self.assertEqual({row["impl"] for row in rows}, impls)
        for row in rows:
            self.check_row(row, impls)
        return rows, got.stderr

    def check_row(self, row, impls):
        self.assertGreater(row["ns_median"], 0)
        self.assertGreater(row["limit_fraction"], 0)
        self.assertEqual(row["isa"] is None, row["impl"] != "pagedkv")
        for impl, fraction in FRACTIONS.items():
            if row["layout"] == "hnd" or row["plan"] == "merged" or impl not in impls:
                self.assertIsNone(row[fraction])
            else:
                self.assertGreater(row[fraction], 0)

    def test_no_python(self):
        missing = self.folder / "missing"
        self.check(PLAIN, [rf"{BOTH}: {missing}: No such file or directory"], missing)
        missing.write_text("")
        self.check(PLAIN, [rf"{BOTH}: {missing}: Permission denied"], missing)
        self.check(PLAIN, [], missing, "--peers", "off")
        _, stderr = self.check(PLAIN, [], missing, quiet=True)
        self.assertEqual(stderr, "")
        quick = [word for word in SMALL if word not in ("--peers", "auto")]
        self.check(PLAIN, [], missing, arguments=quick)
        self.check(PLAIN, [], missing, "--layout", "hnd")

    def test_wrong_option(self):
        got = self.run_bench("", "--peers", "some")
        self.assertEqual(got.returncode, 2)
        self.assertEqual(got.stderr, 'pagedkv: --peers "some": not one of auto off\n')

    def test_ends_at_once(self):
        for text in ("exit 3", "echo ok 3", "kill -9 $$"):
            with self.subTest(text=text):
                python = self.executable(f"#!/bin/sh\n{text}\n")
                self.check(PLAIN, [f"{BOTH}: {python}: {ENDED}"], python)

    def test_nonsense(self):
        for says in ("nonsense\n", "\n", "ok\n", "ok 4\n", "ok -1\n", "ok 3x\n", "ok 3\nok 3\n",
                     "0" * 300):
            with self.subTest(says=says):
                python = self.speaker(says, "ok 0\n")
                self.check(PLAIN, [f"{BOTH}: {python}: {NONSENSE}"], python)

    def test_control_characters_do_not_reach_the_terminal(self):
        python = self.speaker("failed \x1b[2J\n")
        self.check(PLAIN, [rf"{BOTH}: {python}: failed \?\[2J"], python)

    def test_ends_in_the_middle(self):
        says = ["ok 3\n", "ok 0\n", "ok 9\n", "ok -1\n", "ok 9\n", "ok -1\n", "ok 9\n"]
        for n in range(1, len(says)):
            with self.subTest(n=n):
                python = self.speaker(*says[:n])
                self.check(PLAIN, [f"{BOTH}: {python}: {ENDED}"], python)

    def test_nonsense_in_the_middle(self):
        start = ["ok 3\n", "ok 0\n"]
        for says in (["ok 0\n"], ["ok -5\n"], ["ok 99999999999999999999\n"], ["ok 9\n", "ok -2\n"]):
            with self.subTest(says=says):
                python = self.speaker(*start, *says)
                self.check(PLAIN, [f"{BOTH}: {python}: {NONSENSE}"], python)
        python = self.speaker(*start, "failed MemoryError: \n")
        self.check(PLAIN, [f"{BOTH}: {python}: failed MemoryError: "], python)

    def test_never_answers(self):
        python = self.executable("#!/bin/sh\nexec sleep 250\n")
        self.check(PLAIN, [f"{BOTH}: {python}: no answer for 30 s"], python)

    def test_other_pages(self):
        python = self.speaker("ok 3\n", "ok 1\n")
        self.check(PLAIN, [f"{BOTH}: {python}: got huge pages, the program did not"], python,
                   "--huge-pages", "off")

    def test_one_of_two(self):
        many = ["ok 9\n", "ok -1\n", *["ok 9\n"] * 9]
        for mask, impl, absent in ((1, "numpy", "torch"), (2, "index_copy_", "numpy")):
            lost = (set(FRACTIONS) - {impl}).pop()
            with self.subTest(impl=impl):
                python = self.speaker(f"ok {mask}\n", "ok 0\n", *many)
                self.check(PLAIN | {impl}, [f"{lost}: {python}: cannot import {absent}"], python)
        python = self.speaker("ok 0\n")
        self.check(PLAIN, [f"{BOTH}: {python}: cannot import numpy and torch"], python)

    def test_its_own_time_counts(self):
        python = self.speaker("ok 1\n", "ok 0\n", "ok 5\n", "ok -1\n", "ok 32000\n")
        rows, _ = self.check(PLAIN | {"numpy"}, ["index_copy_: .*"], python)
        times = [row["ns_median"] for row in rows if row["impl"] == "numpy"]
        self.assertEqual(times, [1000.0])  # 32 calls of one token

    def test_a_wrong_byte(self):
        python = self.speaker("ok 1\n", "ok 0\n", "ok 9\n", "ok 7\n")
        got = self.run_bench(python, "--quiet")
        self.assertEqual((got.returncode, got.stdout), (1, ""))
        self.assertEqual(got.stderr,
                         "pagedkv: bench update single, numpy: a wrong byte in slot 7\n")

    def test_the_script(self):
        path = self.libraries()
        for options in (("--layout", "all"), ("--layout", "hnd"), ("--dtype", "int4"),
                        ("--layout", "nhd", "--source", "warm", "--dtype", "f32"),
                        ("--pattern", "fixture", "--head-dim", 96, "--layout", "nhd")):
            with self.subTest(options=options):
                impls = PLAIN | (set(FRACTIONS) if "hnd" not in options else set())
                self.check(impls, [], sys.executable, *options, path=path)

    def test_one_plan_is_enough(self):
        rows, _ = self.check(PLAIN | set(FRACTIONS), [], sys.executable, "--pattern", "merged",
                             path=self.libraries())
        self.assertEqual({(row["plan"], row["impl"] in FRACTIONS) for row in rows},
                         {("exact", True), ("exact", False), ("merged", False)})

    def test_the_script_finds_a_wrong_byte(self):
        for wrong in ("row = row[:-1] + bytes([row[-1] ^ 1])", "slot ^= 1", "continue"):
            for layout in ("combined", "nhd"):
                with self.subTest(wrong=wrong, layout=layout):
                    got = self.run_bench(sys.executable, "--quiet", "--layout", layout,
                                         path=self.libraries(wrong))
                    self.assertEqual((got.returncode, got.stdout), (1, ""), got.stderr)
                    self.assertRegex(got.stderr, r"\Apagedkv: bench update single, "
                                     r"(numpy|index_copy_): a wrong byte in slot \d+\n\Z")

    def test_a_library_that_fails(self):
        python = sys.executable
        path = self.libraries("raise ValueError('two\\nlines')")
        self.check(PLAIN, [f"{BOTH}: {python}: failed ValueError: two lines"], python, path=path)
        path = self.libraries()
        (path / "torch.py").write_text("raise OSError('libtorch.so')")
        self.check(PLAIN | {"numpy"}, [f"index_copy_: {python}: cannot import torch"], python,
                   path=path)

    def test_the_real_libraries(self):
        """As they are here: rows, or a note that says what is not there."""
        self.libraries("raise ValueError('the working directory is not where modules are')")
        there = {"numpy": can_import("numpy"), "index_copy_": can_import("torch")}
        absent = [module for module, impl in (("numpy", "numpy"), ("torch", "index_copy_"))
                  if not there[impl]]
        lost = " and ".join(impl for impl in FRACTIONS if not there[impl])
        notes = [f"{lost}: {sys.executable}: cannot import {' and '.join(absent)}"] if lost else []
        impls = PLAIN | {impl for impl in FRACTIONS if there[impl]}
        for options in (("--layout", "all"), ("--pattern", "decode", "--source", "both")):
            with self.subTest(options=options):
                self.check(impls, notes, sys.executable, *options)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: bench_peers.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
