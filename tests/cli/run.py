"""Runs the command-line program as a user does: run.py PROGRAM [unittest options]."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
REAL_TRACES = ROOT.parent / "shared" / "traces"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"

program = ""


def run(*arguments, shell_tail=""):
    """Runs the program; shell_tail is a redirection."""
    command = [program, *map(str, arguments)]
    if shell_tail:
        command = ["sh", "-c", f'exec "$0" "$@" {shell_tail}', *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def requests_of(path):
    """(prompt, output) of each request of a small trace, read in another way than the program."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if path.suffix == ".csv":
        return [tuple(map(int, line.split(",")[1:])) for line in lines[1:]]
    rows = map(json.loads, lines)
    return [(row["input_length"], row["output_length"]) for row in rows]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, text, name="trace"):
        path = self.folder / name
        path.write_bytes(text.encode())
        return path

    def check_fails(self, status, pattern, *arguments, shell_tail=""):
        """This exit status, one line on standard error, nothing on standard output."""
        with self.subTest(arguments=arguments):
            got = run(*arguments, shell_tail=shell_tail)
            self.assertEqual(got.returncode, status, got.stderr)
            self.assertEqual(got.stdout, "")
            self.assertRegex(got.stderr, r"\Apagedkv: [^\n]+\n\Z")
            self.assertRegex(got.stderr, pattern)

    def check_json(self, *arguments):
        """Exit status 0 and JSON, and nothing else, on standard output."""
        got = run(*arguments, "--json", "-")
        self.assertEqual(got.returncode, 0, got.stderr)
        return json.loads(got.stdout)


class Program(Case):
    def test_help(self):
        for arguments in (["--help"], ["-h"], ["help"]):
            got = run(*arguments)
            self.assertEqual((got.returncode, got.stderr), (0, ""))
            for command in ("replay", "plan", "bench", "info"):
                self.assertIn(command, got.stdout)
        for command in ("replay", "plan", "bench", "info"):
            with self.subTest(command=command):
                long_form = run(command, "--help")
                self.assertEqual((long_form.returncode, long_form.stderr), (0, ""))
                self.assertIn(f"pagedkv {command}", long_form.stdout)
                self.assertIn("--json", long_form.stdout)
                self.assertEqual(run("help", command).stdout, long_form.stdout)

    def test_version(self):
        got = run("--version")
        self.assertEqual(got.returncode, 0)
        self.assertRegex(got.stdout, r"\Apagedkv \d+\.\d+\.\d+\n\Z")

    def test_wrong_usage(self):
        self.check_fails(2, "no command given")
        self.check_fails(2, r'unknown command "nonsense" \(see pagedkv --help\)', "nonsense")
        self.check_fails(2, 'unknown command "nonsense"', "help", "nonsense")
        self.check_fails(2, "a\\?b", "a\nb")
        for command in ("replay", "plan", "bench", "info"):
            self.check_fails(2, "--nonsense", command, "--nonsense")
            self.check_fails(2, "--json", command, "--json")

    def test_output_that_cannot_be_written(self):
        self.check_fails(2, "standard output: ", "--help", shell_tail=">&-")
        plan = ("plan", "--page-size", 16)
        self.check_fails(2, "standard output: ", *plan, shell_tail=">&-")
        self.check_fails(2, "standard output: ", *plan, "--json", "-", shell_tail=">&-")
        missing = self.folder / "missing" / "out.json"
        self.check_fails(2, "missing/out.json: No such file", *plan, "--json", missing)
        self.check_fails(2, "Is a directory", *plan, "--json", self.folder)
        for command in ("replay", "bench", "info"):
            self.check_fails(2, "missing/out.json: No such file", command, "--json", missing)
            self.check_fails(2, "Is a directory", command, "--json", self.folder)
            self.check_fails(2, "No such file", command, "--json", "")
        self.check_fails(2, "missing/out.json: No such file", "replay", "--series", missing)
        if Path("/dev/full").exists():
            self.check_fails(2, "No space left", *plan, "--json", "-", shell_tail=">/dev/full")
            self.check_fails(2, "/dev/full: No space left", *plan, "--json", "/dev/full")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_more_threads_than_processors(self):
        for command in ("replay", "bench"):
            self.check_fails(2, r"--threads \d+: this machine has \d+ processors online", command,
                             "--threads", os.cpu_count() + 1)
            for value in ("0", "-1", "x", ""):
                self.check_fails(2, "--threads", command, f"--threads={value}")

    def test_closed_output_is_not_mixed_up_with_a_file(self):
        path = self.folder / "out.json"
        got = run("plan", "--page-size", 16, "--json", path, shell_tail=">&- 2>&- <&-")
        self.assertEqual(got.returncode, 2)
        self.assertEqual(json.loads(path.read_text())["num_slices"], 0)

    def test_json_file(self):
        path = self.folder / "out.json"
        path.write_text("old")
        link = self.folder / "link.json"
        link.symlink_to(path)
        for name in (path, link):
            got = run("plan", "--page-size", 16, "--json", name)
            self.assertEqual(got.returncode, 0, got.stderr)
            self.assertIn("0 slices", got.stdout)
            self.assertEqual(json.loads(path.read_text())["page_size"], 16)
        self.assertTrue(link.is_symlink())
        self.assertEqual(sorted(self.folder.iterdir()), [link, path])


class Plan(Case):
    TWO = ("plan", "--page-size", 16, "--request", "0,10,100", "--request", "10,30,200:201:202")
    ONE = ("plan", "--page-size", 16, "--request", "5,20,50:51")

    def test_vectors(self):
        two = self.check_json(*self.TWO)
        self.assertEqual(two, {
            "slices": [[1600, 0, 10], [3210, 10, 6], [3216, 16, 16], [3232, 32, 8]],
            "num_slices": 4,
            "padded_num_slices": 64,
            "page_size": 16,
            "merged": False,
            "num_tokens": 40,
            "token_bucket": 64,
            "context_lens": [10, 40],
            "query_start_loc": [0, 10, 40],
            "num_seqs": 2,
            "block_tables": [[100], [200, 201, 202]],
            "num_slices_per_block": 64,
        })
        merged = self.check_json(*self.TWO, "--merge")
        self.assertEqual(merged, {
            **two, "slices": [[1600, 0, 10], [3210, 10, 30]], "num_slices": 2, "merged": True})
        self.assertEqual(self.check_json(*self.ONE)["slices"], [[805, 0, 11], [816, 11, 9]])
        self.assertEqual(self.check_json(*self.ONE, "--merge")["slices"], [[805, 0, 20]])

    def test_table(self):
        got = run(*self.TWO, "--merge")
        self.assertEqual(got.returncode, 0)
        rows = [line.split() for line in got.stdout.splitlines()]
        self.assertEqual(rows[0], ["request", "pages", "kv_cache_start", "new_kv_start",
                                   "slice_len"])
        self.assertEqual(rows[1], ["0", "100", "1600", "0", "10"])
        self.assertEqual(rows[2], ["1", "200-202", "3210", "10", "30"])
        self.assertIn("merged plan: 2 slices in 64 columns", got.stdout)
        self.assertEqual(run(*self.TWO, "--merge", "--json", "-").stderr, got.stdout)

    def test_other_sizes(self):
        self.assertEqual(
            self.check_json("plan", "--page-size", 33, "--request", "30,5,4:7")["slices"],
            [[162, 0, 3], [231, 3, 2]])
        self.assertEqual(
            self.check_json("plan", "--page-size", 1, "--request", "1,2,9:8:3")["slices"],
            [[8, 0, 1], [3, 1, 1]])
        wide = self.check_json("plan", "--page-size", 16, "--request", "0,1,5",
                               "--max-num-reqs", 1, "--max-num-batched-tokens", 512)
        self.assertEqual((wide["token_bucket"], wide["padded_num_slices"]), (16, 3))

    def test_requests_without_tokens(self):
        empty = self.check_json("plan", "--page-size", 16)
        self.assertEqual((empty["slices"], empty["num_slices"], empty["num_seqs"]), ([], 0, 0))
        self.assertEqual(empty["query_start_loc"], [0])
        idle = self.check_json("plan", "--page-size", 16, "--request", "0,0,5",
                               "--request", "20,0,5:6", "--request", "3,1,9")
        self.assertEqual(idle["slices"], [[147, 0, 1]])
        self.assertEqual(idle["query_start_loc"], [0, 0, 0, 1])
        self.assertEqual(idle["context_lens"], [0, 20, 4])
        self.assertEqual(idle["block_tables"], [[], [5, 6], [9]])

    def test_bad_requests(self):
        good = ("--request", "0,1,7")
        for text, reason in (
                ("5,20,50", "block table too short: 25 tokens need 2 pages, 1 given"),
                ("20,0,50", "block table too short: 20 tokens need 2 pages, 1 given"),
                ("", "COMPUTED,SCHEDULED,PAGE"),
                ("5", "COMPUTED,SCHEDULED,PAGE"),
                ("5,20", "COMPUTED,SCHEDULED,PAGE"),
                ("-5,20,50", "COMPUTED,SCHEDULED,PAGE"),
                ("5,-20,50", "COMPUTED,SCHEDULED,PAGE"),
                ("5,,50", "COMPUTED,SCHEDULED,PAGE"),
                ("5x,20,50", "COMPUTED,SCHEDULED,PAGE"),
                ("2147483648,1,50", "COMPUTED,SCHEDULED,PAGE"),
                ("5,99999999999999999999,50", "COMPUTED,SCHEDULED,PAGE"),
                ("5,20,", "pages expected"),
                ("5,20,50:", "pages expected"),
                ("5,20,:50", "pages expected"),
                ("5,20,50:51x", "pages expected"),
                ("5,20,50:51,52", "pages expected"),
                ("5,20,50 :51", "pages expected"),
                ("5,20,-1:51", "pages expected"),
                ("5,20,2147483648:51", "pages expected"),
                ("5,20,2147483647:51", "slots exceed int32")):
            named = re.escape(f'--request 1 ("{text}"): ')
            self.check_fails(2, f"{named}.*{reason}", "plan", "--page-size", 16, *good,
                             "--request", text)

    def test_more_than_told(self):
        self.check_fails(2, "more requests.*limit 1", *self.TWO, "--max-num-reqs", 1)
        self.check_fails(2, "more tokens.*limit 32", *self.TWO, "--max-num-batched-tokens", 32)
        self.check_fails(2, r'--request 0 \("0,80,1:2:3:4:5"\): more tokens', "plan",
                         "--page-size", 16, "--max-num-reqs", 1, "--max-num-batched-tokens", 16,
                         "--request", "0,80,1:2:3:4:5")

    def test_bad_options(self):
        self.check_fails(2, "--page-size is missing", "plan", "--request", "0,1,7")
        self.check_fails(2, "unexpected argument", *self.ONE, "extra")
        for option in ("--page-size", "--max-num-reqs", "--max-num-batched-tokens"):
            for value in ("0", "-1", "", "x", "1x", " 1", "+1", "1.5", "2147483648",
                          "99999999999999999999"):
                self.check_fails(2, f"{option} .*not a whole number from 1 to", *self.ONE,
                                 f"{option}={value}")


class Replay(Case):
    SMALL = ("replay", "--num-kv-heads", 2, "--head-dim", 16, "--max-num-reqs", 4,
             "--max-num-batched-tokens", 64, "--quiet")

    def replay(self, trace, page_size=16, *options):
        pages = -(-4096 // page_size)
        return self.check_json(*self.SMALL, trace, "--page-size", page_size,
                               "--num-pages", pages, *options)

    def check_replay(self, report, requests):
        written = sum(max(prompt, prompt + output - 1) for prompt, output in requests)
        self.assertEqual(report["requests"], len(requests))
        self.assertEqual(report["requests_finished"], len(requests))
        self.assertEqual(report["tokens_written"], written)
        self.assertEqual(report["prompt_tokens"], sum(prompt for prompt, _ in requests))
        self.assertEqual(report["mismatched_tokens"], 0)
        self.assertEqual(report["pages_leaked"], 0)
        self.assertEqual(report["verified_tokens"], written)
        self.assertLessEqual(report["slices_merged"], report["slices_exact"])
        self.assertLessEqual(report["slices_exact"], report["slices_static"])
        self.assertLessEqual(report["slices_exact"], written)

    def test_report_fields(self):
        report = self.replay(DATA / "azure_small.csv")
        for field in ("requests", "requests_finished", "steps", "tokens_written", "prompt_tokens",
                      "slices_static", "slices_exact", "slices_merged", "bytes_written", "plan_ns",
                      "plan_ns_merged", "update_ns_static", "update_ns_exact", "update_ns_merged",
                      "copy_limit_bytes_per_s", "update_bytes_per_s", "limit_fraction",
                      "verified_tokens", "mismatched_tokens", "pages_peak", "pages_leaked"):
            self.assertIn(field, report)
        self.assertEqual(report["bytes_written"], report["tokens_written"] * 2 * 2 * 16 * 2)
        self.assertGreater(report["pages_peak"], 0)

    def test_small_traces(self):
        for name in ("azure_small.csv", "mooncake_small.jsonl"):
            with self.subTest(trace=name):
                self.check_replay(self.replay(DATA / name), requests_of(DATA / name))

    def test_dtypes_and_page_sizes(self):
        trace = DATA / "azure_small.csv"
        bits = {"f32": 32, "f16": 16, "bf16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "int8": 8,
                "int4": 4}
        for dtype, n_bits in bits.items():
            for page_size in (1, 16, 33):
                with self.subTest(dtype=dtype, page_size=page_size):
                    report = self.replay(trace, page_size, "--dtype", dtype)
                    self.check_replay(report, requests_of(trace))
                    self.assertEqual(report["bytes_written"],
                                     report["tokens_written"] * 2 * 2 * 16 * n_bits // 8)

    def test_shapes_and_arrivals(self):
        trace = DATA / "azure_small.csv"
        for options in (("--num-kv-heads", 3, "--head-dim", 80), ("--num-kv-heads", 1),
                        ("--num-kv-heads", 7, "--head-dim", 1), ("--num-layers", 3),
                        ("--arrivals", "trace"), ("--threads", 1), ("--max-num-reqs", 1),
                        ("--max-num-batched-tokens", 1), ("--max-num-batched-tokens", 8192),
                        ("--verify", "off")):
            with self.subTest(options=options):
                report = self.replay(trace, 16, *options)
                if options == ("--verify", "off"):
                    self.assertEqual(report["requests_finished"], report["requests"])
                else:
                    self.check_replay(report, requests_of(trace))

    def test_a_pool_with_room_for_one_request_only(self):
        trace = DATA / "azure_small.csv"
        report = self.check_json(*self.SMALL, trace, "--num-pages", 17)
        self.check_replay(report, requests_of(trace))
        self.assertLessEqual(report["pages_peak"], 17)

    def test_part_of_a_trace(self):
        trace = self.write(AZURE_HEADER + "2023-11-16 18:00:00,9,3\nnever read\n")
        self.check_replay(self.replay(trace, 16, "--max-requests", 1), [(9, 3)])

    def test_series(self):
        # One token a step: 3000 steps are more than the series has points.
        trace = self.write(AZURE_HEADER + "2023-11-16 18:00:00,1,1500\n" * 2)
        path = self.folder / "series.json"
        report = self.replay(trace, 16, "--max-num-batched-tokens", 1, "--series", path)
        self.assertEqual(report["series"], str(path))
        series = json.loads(path.read_text())
        columns = series["columns"]
        lengths = {len(values) for values in columns.values()}
        self.assertEqual(len(lengths), 1)
        self.assertIn(lengths.pop(), range(1024, 2049))
        self.assertEqual(set(columns["steps"][:-1]), {series["steps_per_point"]})
        self.assertEqual(sum(columns["tokens"]), report["tokens_written"])
        for name in ("steps", "slices_static", "slices_exact", "slices_merged",
                     "update_ns_static", "update_ns_exact", "update_ns_merged"):
            self.assertEqual(sum(columns[name]), report[name], name)
        self.assertEqual(sum(columns["decode_only_steps"]), report["decode_only"]["steps"])
        for name in ("slices_static", "slices_exact", "slices_merged", "update_ns_static",
                     "update_ns_exact", "update_ns_merged"):
            self.assertEqual(sum(columns["decode_only_" + name]), report["decode_only"][name], name)
        self.assertEqual(sum(columns["decode_only_tokens"]),
                         report["decode_only"]["tokens_written"])
        self.assertEqual(sum(columns["running"]), report["steps"])
        for name in ("pages_shared", "pages_cached", "evictions"):
            self.assertEqual(set(columns[name]), {0}, name)

    def test_series_of_pages(self):
        # Two prompts that begin alike, then others, which take the cached pages.
        trace = self.write("".join(
            json.dumps({"timestamp": 0, "input_length": 1024, "output_length": 4,
                        "hash_ids": ids}) + "\n"
            for ids in ([1, 2], [1, 3], [4, 5], [6, 7])), "trace.jsonl")
        path = self.folder / "series.json"
        report = self.replay(trace, 16, "--prefix-cache", "on", "--num-pages", 100,
                             "--max-num-batched-tokens", 512, "--series", path)
        columns = json.loads(path.read_text())["columns"]
        self.assertGreater(report["evictions"], 0)
        self.assertEqual(sum(columns["evictions"]), report["evictions"])
        self.assertEqual(max(columns["pages_shared"]), 512 // 16)
        self.assertEqual(max(columns["pages_used"]), report["pages_peak"])
        for used, cached in zip(columns["pages_used"], columns["pages_cached"], strict=True):
            self.assertLessEqual(used + cached, 100)
        self.assertGreater(max(columns["pages_cached"]), 0)

    def test_series_path(self):
        trace = DATA / "azure_small.csv"
        path = self.folder / "out.json"
        self.check_fails(2, "--series -", "replay", trace, "--series", "-")
        self.check_fails(2, "--series and --json name the same file", "replay", trace,
                         "--series", path, "--json", path)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_waiting_threads_sleep(self):
        """Unless the variable is set; what OpenMP prints at each start says how they wait."""
        def spins(**variables):
            environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
            environment.update(variables, OMP_DISPLAY_ENV="verbose")
            got = subprocess.run([program, "replay", DATA / "azure_small.csv", "--quiet"],
                                 capture_output=True, text=True, check=True, timeout=300,
                                 env=environment)
            return re.findall(r"GOMP_SPINCOUNT = '(\d+)'", got.stderr)

        active = spins(OMP_WAIT_POLICY="active")
        if not active:  # a build without OpenMP, or with another one: it starts once
            self.assertEqual(spins(), [])
            return
        self.assertEqual(len(active), 1)
        self.assertGreater(int(active[0]), 0)
        self.assertEqual(spins()[-1], "0")
        self.assertEqual(spins(OMP_WAIT_POLICY="passive"), ["0"])

    def test_outputs_destroy_nothing(self):
        """By whatever name: another spelling, a link, a file that is not there yet."""
        trace, inner = self.folder / "trace.csv", self.folder / "inner"
        text = (DATA / "azure_small.csv").read_text()
        trace.write_text(text)
        inner.mkdir()
        link, other = self.folder / "link", inner / ".." / "trace.csv"
        link.symlink_to(trace)
        for option in ("--json", "--series"):
            for path in (trace, link, other):
                self.check_fails(2, f"{option} names the trace: .*", "replay", trace, option, path)
        self.check_fails(2, "--series and --json name the same file", "replay", trace,
                         "--json", self.folder / "a", "--series", inner / ".." / "a")
        self.assertEqual(trace.read_text(), text)
        self.assertEqual(sorted(self.folder.iterdir()), [inner, link, trace])
        got = run("replay", trace, "--json", "/dev/null", "--series", "/dev/null", "--quiet")
        self.assertEqual((got.returncode, got.stderr), (0, ""))

    def test_outputs_are_tried_before_the_work(self):
        """A trace that is not there is only found once the outputs are known to work."""
        missing = self.folder / "missing.csv"
        self.check_fails(2, "out.json: No such file", "replay", missing, "--json",
                         self.folder / "missing" / "out.json")
        old, link = self.folder / "old.json", self.folder / "link.json"
        old.write_text("old")
        link.symlink_to(old)
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        for path in (old, link, fifo, self.folder / "new.json", "/dev/null"):
            self.check_fails(2, "missing.csv: No such file", "replay", missing, "--json", path)
        self.assertEqual(old.read_text(), "old")
        self.assertEqual(sorted(self.folder.iterdir()), [fifo, link, old])

    def test_nothing_but_the_table_in_a_pipe(self):
        options = [option for option in self.SMALL if option != "--quiet"]
        got = run(*options, DATA / "azure_small.csv", "--num-pages", 64)
        self.assertEqual((got.returncode, got.stderr), (0, ""))
        self.assertNotIn("\r", got.stdout)
        self.assertNotIn("\033", got.stdout)

    def test_histogram_marks_empty_bins(self):
        """Pages of one token: a step of 300 slices (512 columns), then two of 1, in bins of 64."""
        trace = self.write(AZURE_HEADER + "2023-11-16 18:00:00,300,3\n")
        options = [option for option in self.SMALL if option != "--quiet"]
        got = run(*options, trace, "--num-pages", 512, "--page-size", 1,
                  "--max-num-batched-tokens", 512)
        lines = got.stdout.split("slices of a step")[1].splitlines()[1:-1]
        self.assertEqual([line.split()[0] for line in lines], ["0", "...", "256", "...", "512"])

    def test_empty_traces(self):
        for text in ("", "\n", AZURE_HEADER):
            with self.subTest(text=text):
                report = self.replay(self.write(text))
                self.assertEqual((report["requests"], report["requests_finished"]), (0, 0))
                self.assertEqual((report["tokens_written"], report["pages_leaked"]), (0, 0))
                self.assertIsNone(report["update_bytes_per_s"])

    def test_synthetic_trace(self):
        options = (*self.SMALL, "--max-requests", 5, "--num-pages", 2000, "--seed")
        once, again = (self.check_json(*options, 1) for _ in range(2))
        self.assertEqual(once["requests_finished"], 5)
        self.assertEqual(once["mismatched_tokens"], 0)
        for field in ("tokens_written", "slices_exact", "steps"):
            self.assertEqual(once[field], again[field])
        self.assertNotEqual(self.check_json(*options, 2)["tokens_written"],
                            once["tokens_written"])

    def test_bad_traces(self):
        row = "2023-11-16 18:00:00,9,3\n"
        for text, line, reason in (
                (AZURE_HEADER + row + "2023-11-16 18:00:00,9\n", 3, "not three columns"),
                (AZURE_HEADER + row + "\n2023-11-16 18:00:00,-9,3\n", 4, "ContextTokens"),
                (AZURE_HEADER + "2023-11-16 18:00:00,0,3\n", 2, "prompt of 0 tokens"),
                (row, 1, "not the first line of a known trace format"),
                ('{"timestamp": 0}\n', 1, "input_length is missing"),
                ('{"timestamp": 0\n', 1, "not valid JSON")):
            path = self.write(text)
            self.check_fails(2, re.escape(f"{path}:{line}: ") + reason, "replay", path)
        self.check_fails(2, "No such file", "replay", self.folder / "missing.csv")
        self.check_fails(2, "Is a directory", "replay", self.folder)

    def test_bad_options(self):
        trace = DATA / "azure_small.csv"
        self.check_fails(2, 'unknown format "nonsense"', "replay", trace, "--format", "nonsense")
        self.check_fails(2, "azure_small.csv:1: the header Timestamp,", "replay", trace, "--format",
                         "burstgpt")
        for option in ("--page-size", "--num-pages", "--max-num-reqs", "--num-kv-heads",
                       "--max-num-batched-tokens", "--head-dim", "--num-layers"):
            for value in ("0", "-1", "x", "", "99999999999999999999"):
                self.check_fails(2, option, "replay", trace, f"{option}={value}")
        for option in ("--dtype", "--arrivals", "--backend", "--verify"):
            self.check_fails(2, f"{option}.*nonsense", "replay", trace, option, "nonsense")
        self.check_fails(2, "int4", "replay", trace, "--dtype", "int4", "--head-dim", 3)
        self.check_fails(2, "azure_small.csv", "replay", trace, trace)

    def test_exhausted(self):
        trace = DATA / "azure_small.csv"
        self.check_fails(3, re.escape(f"{trace}:2: request needs 2 pages of 16 tokens, the pool "
                                      "has 1"), "replay", trace, "--num-pages", 1)
        self.check_fails(3, re.escape(f"{trace}:8: request needs 17 pages"), "replay", trace,
                         "--num-pages", 16)
        self.check_fails(3, r": request 0 needs \d+ pages", "replay", "--num-pages", 1)
        self.check_fails(3, r"\d.*(bytes|[GT]iB)", "replay", trace, "--num-pages", 100000000)
        self.check_fails(3, "a cache of 2147483647 pages of 1 tokens is too large", "replay", trace,
                         "--page-size", 1, "--num-pages", 2**31 - 1)

    def test_everything_that_grows_is_in_the_memory_check(self):
        """Rows of two bytes: K and V are the least of it."""
        tiny = ("--num-kv-heads", 1, "--head-dim", 1, "--dtype", "int8")
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
        # A page of one token: 2 bytes of K and V, a stamp, a note of 4 bytes, 33 in the pool.
        pages = min(memory // 2 // 40 + 1, 2**30)
        if pages * 40 > memory // 2:
            self.check_fails(3, "of tables are more than half of the memory", "replay", *tiny,
                             DATA / "azure_small.csv", "--page-size", 1, "--num-pages", pages)
        # A block table of 2^20 rows that are as long as the longest request.
        entries = memory // 2 // 4 // 2**20 + 1
        trace = self.write(AZURE_HEADER + f"2023-11-16 18:00:00,1,{entries}\n")
        self.check_fails(3, "of tables are more than half of the memory", "replay", *tiny, trace,
                         "--page-size", 1, "--num-pages", 2 * entries, "--max-num-reqs", 2**20,
                         "--max-num-batched-tokens", 1)

    @unittest.skipUnless(REAL_TRACES.is_dir(), f"{REAL_TRACES} is not there")
    def test_real_traces(self):
        for name in ("AzureLLMInferenceTrace_conv.csv", "AzureLLMInferenceTrace_code.csv",
                     "mooncake_conversation_trace.jsonl"):
            with self.subTest(trace=name):
                report = self.check_json(
                    "replay", REAL_TRACES / name, "--max-requests", 50, "--num-kv-heads", 1,
                    "--head-dim", 8, "--num-pages", 20000, "--quiet")
                self.assertEqual(report["requests_finished"], 50)
                self.assertEqual(report["mismatched_tokens"], 0)
                self.assertEqual(report["pages_leaked"], 0)


class Bench(Case):
    FIELDS = ("impl", "case", "pattern", "plan", "layout", "page_size", "num_kv_heads", "head_dim",
              "tokens", "num_slices", "source", "src_dtype", "cache_dtype", "isa", "threads",
              "huge_pages", "ns_median", "bytes_per_s", "limit_bytes_per_s", "limit_fraction",
              "pattern_bytes_per_s", "pattern_fraction")

    def test_plan(self):
        rows = self.check_json("bench", "plan", "--quick")
        self.assertGreater(len(rows), 0)
        for row in rows:
            self.assertEqual([field for field in self.FIELDS if field not in row], [])
            self.assertEqual(row["case"], "plan")

    def test_update(self):
        rows = self.check_json("bench", "update", "--quick", "--rounds", 1)
        self.assertEqual({row["impl"] for row in rows}, {"pagedkv", "memcpy"})
        for row in rows:
            self.assertEqual([field for field in self.FIELDS if field not in row], [])
            self.assertEqual(row["case"], "update")
            self.assertIsInstance(row["huge_pages"], bool)
            self.assertGreater(row["ns_median"], 0)

    def test_unknown_case(self):
        self.check_fails(2, "nonsense", "bench", "nonsense")


class Info(Case):
    def test_info(self):
        report = self.check_json("info")
        self.assertIsInstance(report, dict)
        self.check_fails(2, "unexpected argument", "info", "extra")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: run.py PROGRAM [unittest options]")
    program = os.path.abspath(sys.argv[1])
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])
