"""Faults in the library that the replay must find: faults.py PROGRAM [unittest options].

PROGRAM is the command-line program with fault.c between it and the library.
Each update call writes all that its step writes, so what one call does wrong
shows in the step's last call, the third; what it does to other slots always.
"""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
TRACE, PROMPTS = DATA / "azure_small.csv", DATA / "bailian_small.jsonl"
PAGE_SIZE, NUM_PAGES = 16, 64
SLOTS = PAGE_SIZE * NUM_PAGES
SMALL = ("replay", TRACE, "--page-size", PAGE_SIZE, "--num-pages", NUM_PAGES, "--num-kv-heads", 2,
         "--head-dim", 16, "--max-num-batched-tokens", 64, "--threads", 1, "--quiet")
MANY = (*SMALL, "--max-num-reqs", 4, "--num-layers", 2)
# One request at a time: the first one has 17 + 9 tokens in pages 0 and 1.  Its
# step 0 writes slots 0 to 16, steps 1 to 8 one slot each; slot 25 stays empty.
ALONE = (*SMALL, "--max-num-reqs", 1)
WAYS = ("static", "exact", "merged")
TOKEN = (r"request \d+, token \d+, slot \d+, layer \d+, [KV] head \d+, byte \d+: "
         r"expected 0x\w\w, found 0x\w\w")
STRAY = (r"stray write: step \d+, page \d+, slot \d+, layer \d+, byte \d+: "
         r"expected 0xa5, found 0x\w\w")
COUNT = r"step \d+: the (exact|merged) plan has \d+ slices, its tokens make \d+"

program = ""


def run(arguments, **fault):
    environment = {name: value for name, value in os.environ.items() if "FAULT" not in name}
    environment.update({name: str(value) for name, value in fault.items()})
    return subprocess.run([program, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, timeout=300, check=False)


class Faults(unittest.TestCase):
    def check_found(self, place, arguments, **fault):
        """Exit status 1 and one line that names a place."""
        with self.subTest(**fault):
            got = run(arguments, **fault)
            self.assertEqual(got.returncode, 1, got.stderr)
            self.assertEqual(got.stdout, "")
            self.assertRegex(got.stderr, rf"\Apagedkv: {place}\n\Z")

    def check_found_in_last_calls(self, place, fault):
        """Made in the last call of a step, now one step and now another."""
        for step in range(0, self.n_steps, 13):
            self.check_found(place, MANY, FAULT=fault, FAULT_AT=3 * step + 2)

    @classmethod
    def setUpClass(cls):
        got = run((*MANY, "--json", "-"))
        cls.n_steps = json.loads(got.stdout)["steps"]

    def test_no_fault(self):
        for arguments in (MANY, ALONE):
            got = run(arguments)
            self.assertEqual((got.returncode, got.stdout, got.stderr), (0, "", ""))

    def test_one_way_writes_too_little(self):
        for fault in ("drop", "cut", "short"):
            for i, way in enumerate(WAYS):
                self.check_found(TOKEN, MANY, FAULT=f"{fault}-{way}")
                if fault != "short":
                    # The step whose last call is this way: see write_step() in cli/replay_run.c.
                    step = (i + 1) % 3 + 3
                    self.check_found(TOKEN, MANY, FAULT=f"{fault}-{way}", FAULT_AT=3 * step + 2)

    def test_wrong_data(self):
        for fault in ("swap", "wrong-row", "flip", "wrong-layer", "fewer-layers"):
            self.check_found(TOKEN, MANY, FAULT=fault)
            self.check_found_in_last_calls(TOKEN, fault)

    def test_wrong_page(self):
        self.check_found(f"({TOKEN}|{STRAY})", MANY, FAULT="wrong-page")
        self.check_found_in_last_calls(f"({TOKEN}|{STRAY})", "wrong-page")

    def test_stray_write_to_a_slot_that_nobody_has_written(self):
        behind_last_token, reserved = (17, 24), (25, 31)
        free_taken_later, free_forever = (32, 33), (SLOTS - 1,)
        for slot in (*behind_last_token, *reserved, *free_taken_later, *free_forever):
            for call in range(3):
                place = STRAY.replace(r"slot \d+", f"slot {slot}")
                self.check_found(place, ALONE, FAULT="stray", FAULT_AT=call, FAULT_SLOT=slot)

    def test_stray_write_to_a_token_of_an_earlier_step(self):
        for call in (2, 3, 4, 5, 24, 25, 26):
            self.check_found(TOKEN.replace(r"slot \d+", "slot 3"), ALONE, FAULT="stray",
                             FAULT_AT=call, FAULT_SLOT=3)

    def test_stray_write_outside_the_cache(self):
        for slot, side in ((-1, "in front of"), (SLOTS, "behind")):
            self.check_found(rf"stray write {side} the cache: expected 0xa5, found 0x\w\w", ALONE,
                             FAULT="stray", FAULT_AT=4, FAULT_SLOT=slot)

    def test_plans(self):
        for fault in ("plan-drop", "plan-split"):
            for way in ("exact", "merged"):
                self.check_found(COUNT.replace("(exact|merged)", way), MANY, FAULT=f"{fault}-{way}")
                self.check_found(COUNT.replace("(exact|merged)", way), MANY, FAULT=f"{fault}-{way}",
                                 FAULT_AT=0)

    def test_pages(self):
        handed_out = r"the pool handed out page \d+, which is "
        self.check_found(handed_out + "in use", MANY, FAULT="page-twice")
        self.check_found(handed_out + "none", MANY, FAULT="page-none")
        self.check_found("the pool has no pages for request 0, though nobody holds any", MANY,
                         FAULT="no-pages")

    def test_conversions(self):
        for cache_dtype in ("int8", "int4", "fp8_e5m2", "f16"):
            small = (*MANY, "--dtype", "bf16", "--cache-dtype", cache_dtype)
            self.assertEqual(run(small).returncode, 0)
            for fault in ("drop-exact", "drop-merged", "swap", "wrong-row", "flip", "wrong-layer",
                          "fewer-layers"):
                self.check_found(TOKEN, small, FAULT=fault)
            self.check_found(f"({TOKEN}|{STRAY})", small, FAULT="wrong-page")
        self.check_found(r"request \d+, token \d+, slot \d+, layer \d+: a scale of V is not that "
                         "of its numbers", (*MANY, "--cache-dtype", "int8"), FAULT="scale")

    def test_hits(self):
        reuse = (SMALL[0], PROMPTS, *SMALL[2:], "--num-layers", 2, "--prefix-cache", "on")
        self.assertEqual(run(reuse).returncode, 0)
        self.check_found(r"a hit of \d+ tokens leaves none of \d+", reuse, FAULT="hit-long")
        self.check_found(TOKEN, reuse, FAULT="hit-other")
        self.check_found(r"page \d+ was found as page 0 of a prompt, which it is not", reuse,
                         FAULT="hit-unwritten")

    def test_leaks(self):
        """At the last step's end it is the count that is wrong; before, places run out."""
        self.check_found(r"the pool counts \d+ pages in use, \d+ at the peak and 0 cached; noted "
                         r"are 0, \d+ and 0", MANY, FAULT="leak", FAULT_AT=3 * self.n_steps)
        self.check_found("opening a sequence: [^\n]+", MANY, FAULT="leak")

    def test_block_table_that_changes(self):
        place = f"({TOKEN}|{STRAY}|{COUNT})"
        for step in range(0, self.n_steps, 13):
            self.check_found(place, MANY, FAULT="table-moves", FAULT_AT=3 * step)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: faults.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
