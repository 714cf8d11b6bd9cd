"""`pagedkv bench pool`: bench_pool.py PROGRAM [unittest options].

Which rows there are, and which fields of each are null.  How long anything took is no matter.
"""

import json
import os
import subprocess
import sys
import unittest

TAKEN = {"alloc", "free", "touch"}
CALLS = {"alloc_runs": 256, "free_runs": 256, "alloc_scattered": 64, "free_scattered": 64}
TABLES = {"reserve": (256, 256 * 16), "fork": (1, 100000), "trim": (1, 5), "close": (1, 100000)}
PREFIX = {"prefix_find": (1, 10000), "prefix_miss": (1, 10000), "prefix_insert": (1, 10000),
          "prefix_append": (1, 16)}
PREFIX_PAGES = {"prefix_find": 624, "prefix_insert": 625, "prefix_append": 1}
ALL = {*TAKEN, *CALLS, *TABLES, *PREFIX, "grow"}
SIZES = {1000, 10000, 100000}
PREFIX_SIZES = {10000, 100000}
ALWAYS = {"backend", "impl", "case", "pattern", "pages", "threads", "huge_pages", "rounds",
          "ns_median", "ns_p25", "ns_p75"}
WIDTH = 80

program = ""


def run(*arguments):
    return subprocess.run([program, "bench", *map(str, arguments)], capture_output=True, text=True,
                          timeout=200, check=False)


class Pool(unittest.TestCase):
    def rows(self, *options):
        got = run("pool", "--quick", "--json", "-", *options)
        self.assertEqual(got.returncode, 0, got.stderr)
        for line in got.stderr.splitlines()[1:]:  # the first one is the machine
            self.assertLessEqual(len(line), WIDTH)
        return json.loads(got.stdout), got.stderr

    def check_row(self, row):
        pattern, pool = row["pattern"], row["impl"] == "pagedkv"
        there = set(ALWAYS)
        there |= {"ns_per_page"} if pattern not in ("trim", "prefix_miss") else set()
        there |= {"linked_list_fraction"} if pattern in TAKEN and pool else set()
        there |= {"requests", "adjacent_fraction", "used_fraction"} if pattern == "grow" else set()
        there |= {"page_size", "requests", "tokens"} if pattern in TABLES | PREFIX else set()
        self.assertEqual({name for name, value in row.items() if value is not None}, there)
        self.assertEqual((row["case"], row["threads"]), ("pool", 1))
        self.assertIn(row["impl"], ("pagedkv", "linked_list"))
        self.assertTrue(0 < row["ns_p25"] <= row["ns_median"] <= row["ns_p75"])
        if pattern in TABLES | PREFIX:
            self.assertEqual((row["requests"], row["tokens"]), (TABLES | PREFIX)[pattern])
            self.assertEqual(row["page_size"], 16)

    def check_pages_of_a_call(self, row):
        n_pages = (CALLS | PREFIX_PAGES).get(row["pattern"])
        if row["pattern"] in TAKEN:
            n_pages = row["pages"] // 10
        elif row["pattern"] in ("grow", "reserve"):
            n_pages = row["requests"]
        elif row["pattern"] in ("fork", "close"):
            n_pages = row["tokens"] // row["page_size"]
        if n_pages is not None:
            self.assertAlmostEqual(row["ns_per_page"] * n_pages / row["ns_median"], 1)

    def test_all_rows(self):
        rows, table = self.rows("--huge-pages", "off", "--rounds", 3)
        self.assertIn("pool, bookkeeping on ordinary pages", table)
        for row in rows:
            with self.subTest(row=row):
                self.check_row(row)
                self.check_pages_of_a_call(row)
                self.assertEqual((row["rounds"], row["huge_pages"]), (3, False))
        of = {(row["impl"], row["pattern"], row["pages"]) for row in rows}
        self.assertEqual(len(of), len(rows))
        self.assertEqual(of, {(impl, pattern, n) for impl in ("pagedkv", "linked_list")
                              for pattern in TAKEN for n in SIZES} |
                         {("pagedkv", pattern, n) for pattern in PREFIX for n in PREFIX_SIZES} |
                         {("pagedkv", pattern, 100000) for pattern in ALL - TAKEN - {*PREFIX}})

    def test_growth_is_adjacent(self):
        """Half of the pool in use is what the library says it can take."""
        (row, *rest), _ = self.rows("--huge-pages", "off", "--rounds", 1, "--pattern", "grow")
        self.assertEqual(rest, [])
        self.assertTrue(0.4 < row["used_fraction"] < 0.7, row)
        self.assertTrue(0.95 <= row["adjacent_fraction"] <= 1, row)

    def test_one_pattern(self):
        for pattern in sorted(ALL):
            with self.subTest(pattern=pattern):
                rows, _ = self.rows("--pattern", pattern, "--rounds", 1)
                self.assertEqual({row["pattern"] for row in rows}, {pattern})
                for row in rows:
                    self.check_row(row)

    def test_a_pattern_of_another_case(self):
        got = run("pool", "--quick", "--pattern", "decode")
        self.assertEqual((got.returncode, got.stdout), (2, ""))
        self.assertIn("nothing to time", got.stderr)
        rows, _ = self.rows("plan", "--pattern", "touch", "--rounds", 1)
        self.assertEqual({row["case"] for row in rows}, {"pool"})

    def test_quiet(self):
        got = run("pool", "--quick", "--pattern", "trim", "--rounds", 1, "--quiet")
        self.assertEqual((got.returncode, got.stdout, got.stderr), (0, "", ""))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: bench_pool.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
