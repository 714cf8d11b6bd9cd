"""`pagedkv bench` convert, gather, layout, copy-pages, swap and update's layers:
bench_moves.py PROGRAM [unittest options].

Which rows there are, and which fields of each are null.  How long anything took is no matter.
"""

import json
import os
import subprocess
import sys
import unittest

CONVERT = {"f32_bf16": ("f32", "bf16", "none"), "f32_f16": ("f32", "f16", "none"),
           "f32_int8_head": ("f32", "int8", "head"),
           "f32_int8_token_head": ("f32", "int8", "token_head"),
           "bf16_fp8_e4m3_tensor": ("bf16", "fp8_e4m3", "tensor"),
           "f32_fp8_e4m3": ("f32", "fp8_e4m3", "none"), "f32_fp8_e5m2": ("f32", "fp8_e5m2", "none"),
           "bf16_int8_token_head": ("bf16", "int8", "token_head"),
           "f32_int4_group32": ("f32", "int4", "group32")}
GATHER = {"bf16_f32": ("f32", "bf16", "none"), "f16_f32": ("f32", "f16", "none"),
          "int8_head_f32": ("f32", "int8", "head"),
          "int8_token_head_f32": ("f32", "int8", "token_head"),
          "int8_token_head_bf16": ("bf16", "int8", "token_head"),
          "fp8_e4m3_tensor_bf16": ("bf16", "fp8_e4m3", "tensor"),
          "fp8_e5m2_bf16": ("bf16", "fp8_e5m2", "none"),
          "int4_group32_bf16": ("bf16", "int4", "group32")}
LAYOUT = {"hnd": "hnd", "fused_qkv": "nhd", "content": "content", "mla": "mla"}
BITS = {"f32": 32, "f16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "int8": 8, "int4": 4}
SCALES = {"none": 0, "tensor": 0, "head": 0, "token_head": 1, "group32": 4}  # of a head of 128
PATTERNS = {"convert": set(CONVERT), "gather": set(GATHER), "layout": set(LAYOUT),
            "copy-pages": {"16KiB", "64KiB", "256KiB"}, "swap": {"out", "in"}}

ALWAYS = {"backend", "impl", "case", "pattern", "plan", "layout", "page_size", "num_kv_heads",
          "head_dim", "tokens", "source", "src_dtype", "cache_dtype", "isa", "threads",
          "huge_pages", "rounds", "ns_median", "ns_p25", "ns_p75", "bytes_per_s", "limit_way",
          "limit_bytes_per_s", "limit_fraction"}
PLANNED = {"requests", "num_slices", "ns_per_slice"}
LOOP = {"pattern_way", "pattern_bytes_per_s", "pattern_fraction"}
PAGES = {"pages", "layers", "ns_per_page"}
WIDTH = 80

program = ""


def run(*arguments, **environment):
    return subprocess.run([program, "bench", *map(str, arguments)], capture_output=True, text=True,
                          timeout=200, check=False, env=dict(os.environ, **environment))


class Moves(unittest.TestCase):
    def rows(self, *arguments, **environment):
        got = run(*arguments, "--quick", "--rounds", 1, "--json", "-", **environment)
        self.assertEqual(got.returncode, 0, got.stderr)
        for line in got.stderr.splitlines()[1:]:  # the first one is the machine
            self.assertLessEqual(len(line), WIDTH, line)
        rows = json.loads(got.stdout)
        for row in rows:
            self.assertTrue(0 < row["ns_p25"] <= row["ns_median"] <= row["ns_p75"], row)
            if row["case"] not in ("plan", "pool"):
                self.assertGreater(row["limit_fraction"], 0)
        return rows

    def check_fields(self, row, *more):
        there = ALWAYS.union(*more)
        self.assertEqual({name for name, value in row.items() if value is not None}, there)

    def check_bytes(self, row, moved):
        self.assertAlmostEqual(row["bytes_per_s"] * row["ns_median"] / 1e9 / moved, 1)

    def check_conversions(self, case, kinds):
        rows = self.rows(case, "--layout", "all")
        self.assertEqual({(row["pattern"], row["layout"]) for row in rows},
                         {(name, layout) for name in kinds for layout in ("combined", "nhd")})
        for row in rows:
            with self.subTest(pattern=row["pattern"], layout=row["layout"]):
                self.check_fields(row, PLANNED, {"scales"})
                types = (row["src_dtype"], row["cache_dtype"], row["scales"])
                self.assertEqual(types, kinds[row["pattern"]])
                self.assertEqual((row["impl"], row["case"]), ("pagedkv", case))
                self.assertEqual((row["tokens"], row["page_size"], row["threads"]), (1024, 64, 1))
                heads = 1024 * 2 * 8
                bits = BITS[types[0]] + BITS[types[1]]
                self.check_bytes(row, heads * (128 * bits // 8 + 4 * SCALES[types[2]]))

    def test_convert(self):
        self.check_conversions("convert", CONVERT)

    def test_gather(self):
        self.check_conversions("gather", GATHER)

    def test_layout(self):
        rows = self.rows("layout")
        self.assertEqual({row["pattern"]: row["layout"] for row in rows}, LAYOUT)
        for row in rows:
            with self.subTest(pattern=row["pattern"]):
                self.check_fields(row, PLANNED, LOOP)
                self.check_bytes(row, 2 * 1024 * 2 * (2 * 8 * 128 if row["layout"] != "mla"
                                                      else 512 + 64))

    def test_copy_pages(self):
        rows = self.rows("copy-pages")
        self.assertEqual({row["pattern"]: row["page_size"] for row in rows},
                         {"16KiB": 4, "64KiB": 16, "256KiB": 64})
        for row in rows:
            with self.subTest(pattern=row["pattern"]):
                self.check_fields(row, LOOP, PAGES)
                self.assertEqual((row["layers"], row["plan"]), (1, "none"))
                self.check_bytes(row, 2 * row["tokens"] * 4096)

    def test_swap(self):
        rows = self.rows("swap")
        self.assertEqual({row["pattern"] for row in rows}, {"out", "in"})
        for row in rows:
            with self.subTest(pattern=row["pattern"]):
                self.check_fields(row, LOOP, PAGES)
                self.assertEqual(row["layers"], 32)
                self.check_bytes(row, 2 * row["tokens"] * 4096 * 32)

    def test_layers(self):
        rows = self.rows("update", "--pattern", "layers")
        self.assertEqual({(row["impl"], row["tokens"]) for row in rows},
                         {(impl, n) for impl in ("pagedkv", "pagedkv_calls") for n in (1, 8, 256)})
        for row in rows:
            with self.subTest(impl=row["impl"], tokens=row["tokens"]):
                one_call = row["impl"] == "pagedkv"
                self.check_fields(row, PLANNED, {"layers"}, {"calls_fraction"} if one_call else ())
                self.assertEqual((row["case"], row["layers"]), ("update", 32))
                self.check_bytes(row, 2 * row["tokens"] * 4096 * 32)

    def test_one_pattern(self):
        for case, patterns in PATTERNS.items():
            pattern = sorted(patterns)[0]
            with self.subTest(case=case, pattern=pattern):
                rows = self.rows(case, "--pattern", pattern)
                self.assertEqual({(row["case"], row["pattern"]) for row in rows}, {(case, pattern)})

    def test_every_instruction_set(self):
        for case, pattern in (("convert", "f32_fp8_e4m3"), ("gather", "int4_group32_bf16"),
                              ("swap", "out")):
            rows = self.rows(case, "--pattern", pattern, "--isa", "all")
            self.assertIn("c", {row["isa"] for row in rows})

    def test_all_cases(self):
        rows = self.rows("--huge-pages", "off")
        got = {}
        for row in rows:
            got.setdefault(row["case"], set()).add(row["pattern"])
        self.assertEqual(set(got), {*PATTERNS, "update", "plan", "pool"})
        for case, patterns in PATTERNS.items():
            self.assertEqual(got[case], patterns)

    def test_a_shape_that_does_not_fit(self):
        got = run("convert", "--quick", "--head-dim", 33)  # no groups of 32
        self.assertEqual((got.returncode, got.stdout), (2, ""))
        self.assertIn("nothing to time", got.stderr)

    def test_peers(self):
        """The libraries as they are here, or a note."""
        rows = self.rows("convert", "--pattern", "f32_f16", "--peers", "auto",
                         PAGEDKV_PYTHON=sys.executable)
        here = {"pagedkv"}
        for module, impl in (("numpy", "numpy"), ("torch", "index_copy_")):
            command = [sys.executable, "-c", f"import {module}"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                here.add(impl)
        self.assertEqual({row["impl"] for row in rows}, here)
        for row in rows:
            self.assertEqual(row["numpy_fraction"] is not None, "numpy" in here)
            self.assertEqual(row["index_copy_fraction"] is not None, "index_copy_" in here)

    def test_no_python(self):
        got = run("convert", "--quick", "--rounds", 1, "--pattern", "f32_f16", "--peers", "auto",
                  PAGEDKV_PYTHON="/nowhere/python")
        self.assertEqual(got.returncode, 0)
        self.assertIn("no rows of numpy and index_copy_: /nowhere/python: No such file", got.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: bench_moves.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
