"""Replays with each way to choose pages: allocators.py PROGRAM [unittest options].

What is written does not depend on where it lies; how far slices merge does.
"""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
ALLOCATORS = ("extent", "lifo", "fifo")
SMALL = ("replay", "--num-kv-heads", 1, "--head-dim", 8, "--quiet", "--json", "-")
SAME = ("requests", "requests_finished", "steps", "tokens_written", "prompt_tokens",
        "verified_tokens", "slices_static", "slices_exact", "bytes_written", "pages_peak")
ZERO = ("mismatched_tokens", "poison_errors", "plan_errors", "pages_leaked", "prefix_hit_tokens",
        "preemptions", "evictions", "cow_pages")

program = ""


def run(*arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          timeout=300, check=False)


class Allocators(unittest.TestCase):
    def replay(self, *arguments):
        got = run(*SMALL, *arguments)
        self.assertEqual((got.returncode, got.stderr), (0, ""), arguments)
        return json.loads(got.stdout)

    def replay_all(self, *arguments):
        """A report for each allocator, after what must hold for all of them."""
        reports = {name: self.replay(*arguments, "--allocator", name) for name in ALLOCATORS}
        for name, report in reports.items():
            with self.subTest(allocator=name, arguments=arguments):
                self.assertEqual(report["allocator"], name)
                self.assertEqual({field: report[field] for field in ZERO}, dict.fromkeys(ZERO, 0))
                self.assertEqual({field: report[field] for field in SAME},
                                 {field: reports["extent"][field] for field in SAME})
                self.assertEqual(report["verified_tokens"], report["tokens_written"])
                self.assertEqual(report["requests_finished"], report["requests"])
                self.assertLessEqual(report["slices_merged"], report["slices_exact"])
                free = report["options"]["num_pages"] - report["pages_peak"]
                self.assertIn(report["largest_extent_pages"], range(free + 1))
        self.assertLessEqual(reports["extent"]["slices_merged"], reports["fifo"]["slices_merged"])
        self.assertLessEqual(reports["extent"]["slices_merged"], reports["lifo"]["slices_merged"])
        return reports

    def test_synthetic(self):
        reports = self.replay_all("--max-num-reqs", 32, "--num-pages", 8000)
        merged = {name: report["slices_merged"] for name, report in reports.items()}
        self.assertLess(merged["extent"], merged["fifo"])

    def test_crowded(self):
        """Requests wait for pages, first come first served whatever the allocator."""
        reports = self.replay_all("--max-num-reqs", 64, "--num-pages", 700)
        self.assertGreater(reports["extent"]["pages_peak"], 600)

    def test_small_traces(self):
        for name in ("azure_small.csv", "mooncake_small.jsonl"):
            for more in ((), ("--page-size", 1), ("--arrivals", "trace"), ("--num-layers", 2)):
                self.replay_all(DATA / name, "--max-num-reqs", 4, "--num-pages", 4096,
                                "--max-num-batched-tokens", 64, *more)

    def test_a_pool_with_room_for_one_request_only(self):
        for report in self.replay_all(DATA / "azure_small.csv", "--num-pages", 17).values():
            self.assertEqual((report["pages_peak"], report["largest_extent_pages"]), (17, 0))

    def test_lone_requests_lie_in_one_piece(self):
        """One request at a time: with each allocator its pages come in order, from a fresh pool."""
        for report in self.replay_all(DATA / "azure_small.csv", "--max-num-reqs", 1,
                                      "--max-requests", 1, "--num-pages", 64).values():
            self.assertEqual(report["slices_merged"], report["steps"])

    def test_nothing_to_do(self):
        for report in self.replay_all(os.devnull, "--num-pages", 9).values():
            self.assertEqual(report["largest_extent_pages"], 9)

    def test_extent_is_the_default(self):
        self.assertEqual(self.replay(DATA / "azure_small.csv", "--num-pages", 64)["allocator"],
                         "extent")

    def test_words(self):
        for word in ("nonsense", ""):
            got = run("replay", DATA / "azure_small.csv", "--allocator", word)
            self.assertEqual((got.returncode, got.stdout, got.stderr),
                             (2, "", f'pagedkv: --allocator "{word}": not extent, lifo or fifo\n'))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: allocators.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
