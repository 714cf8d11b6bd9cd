"""Replays whose cache has another element type: converted.py PROGRAM [unittest options]."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
SMALL = ("replay", DATA / "azure_small.csv", "--num-pages", 1024, "--max-num-batched-tokens", 64,
         "--max-num-reqs", 4, "--threads", 1, "--quiet", "--json", "-")
BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "int8": 8, "int4": 4}
CHECKS = ("mismatched_tokens", "poison_errors", "plan_errors", "pages_leaked")

program = ""


def run(*arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True,
                          timeout=300, check=False)


class Converted(unittest.TestCase):
    def replay(self, *arguments):
        got = run(*SMALL, *arguments)
        self.assertEqual((got.returncode, got.stderr), (0, ""), arguments)
        report = json.loads(got.stdout)
        self.assertEqual({name: report[name] for name in CHECKS}, dict.fromkeys(CHECKS, 0))
        self.assertEqual(report["verified_tokens"], report["tokens_written"])
        self.assertEqual(report["requests_finished"], report["requests"])
        return report

    def test_all_pairs(self):
        for dtype in ("f32", "f16", "bf16"):
            for cache_dtype, bits in BITS.items():
                for shape in ((2, 16, 16), (1, 80, 7), (3, 2, 1)):
                    heads, head_dim, page_size = shape
                    with self.subTest(dtype=dtype, cache_dtype=cache_dtype, shape=shape):
                        report = self.replay(
                            "--dtype", dtype, "--cache-dtype", cache_dtype, "--num-kv-heads",
                            heads, "--head-dim", head_dim, "--page-size", page_size,
                            "--num-layers", 2)
                        self.assertEqual(report["bytes_written"],
                                         report["tokens_written"] * 2 * 2 * heads * head_dim *
                                         bits // 8)

    def test_one_element_a_head(self):
        for cache_dtype in set(BITS) - {"int4"}:
            self.replay("--dtype", "bf16", "--cache-dtype", cache_dtype, "--head-dim", 1)

    def test_with_prefixes_and_requests_put_back(self):
        got = run("replay", DATA / "bailian_small.jsonl", "--cache-dtype", "int8", "--prefix-cache",
                  "on", "--preempt", "recompute", "--num-pages", 30, "--num-kv-heads", 2,
                  "--head-dim", 16, "--threads", 1, "--quiet", "--json", "-")
        self.assertEqual((got.returncode, got.stderr), (0, ""))
        report = json.loads(got.stdout)
        self.assertEqual(report["mismatched_tokens"] + report["poison_errors"], 0)
        self.assertGreater(report["evictions"], 0)

    def test_what_is_not_converted(self):
        for dtype, cache_dtype in (("int8", "bf16"), ("fp8_e4m3", "fp8_e5m2")):
            got = run(*SMALL, "--dtype", dtype, "--cache-dtype", cache_dtype)
            self.assertEqual((got.returncode, got.stdout, got.stderr),
                             (2, "", f"pagedkv: --cache-dtype {cache_dtype} with --dtype {dtype}: "
                                     "only f32, f16 and bf16 are converted\n"))
        got = run(*SMALL, "--cache-dtype", "int4", "--head-dim", 3)
        self.assertEqual((got.returncode, got.stdout, got.stderr),
                         (2, "", "pagedkv: 8 heads of 3 int4 make no whole row\n"))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: converted.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
