"""pagedkv.report: what it draws is what the files say, it fits every width in a real browser, and
a file that is not right costs one line and no page."""

from __future__ import annotations

import copy
import html
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import pagedkv
import pytest
from pagedkv.report import Bench, InputError, Machine, Replay, read
from pagedkv.report.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("static", "exact", "merged")
WIDTHS = (375, 768, 1280)
Json = dict[str, Any]


# ---- inputs -------------------------------------------------------------------------------


def series_of(n_points: int, steps_per_point: int = 1, *, full: bool = True) -> Json:
    """A series whose points hold prefill and decode in turns; with 2 steps a point, both."""
    columns: dict[str, list[int]] = {}

    def add(name: str, value: int) -> None:
        columns.setdefault(name, []).append(value)

    for i in range(n_points):
        decode = steps_per_point // 2 if steps_per_point > 1 else i % 3 != 0
        prefill = steps_per_point - decode
        add("steps", steps_per_point)
        add("decode_only_steps", int(decode))
        values = {"tokens": (9 * decode, 640 * prefill)}
        for way, (a, b) in zip(WAYS, ((16, 72), (9 + i % 4, 43 + i % 5), (9, 31)), strict=True):
            values[f"slices_{way}"] = (a * decode, b * prefill)
            values[f"update_ns_{way}"] = ((900 + 10 * a + i) * decode, (90000 + 7 * i) * prefill)
        for name, (a, b) in values.items():
            add(name, a + b)
            if full:
                add(f"decode_only_{name}", a)
        add("running", 9 * steps_per_point)
        add("pages_used", (50 + i % 30) * steps_per_point)
        if full:
            add("pages_shared", (3 + i % 2) * steps_per_point)
            add("pages_cached", (20 - i % 10) * steps_per_point)
            add("evictions", int(i % 7 == 0))
    return {"version": 1, "steps_per_point": steps_per_point, "columns": columns}


def run_of(series: Json, split: Json | None = None) -> Json:
    """The JSON of the replay that has this series; split tells the two kinds apart."""
    columns = (split or series)["columns"]
    decode = {name: sum(columns[f"decode_only_{name}"]) for name in
              ("steps", "tokens", *(f"{w}_{way}" for w in ("slices", "update_ns") for way in WAYS))}
    total = {name: sum(columns[name]) for name in decode}

    def kind(part: dict[str, int]) -> Json:
        result: Json = {"steps": part["steps"], "tokens_written": part["tokens"]}
        for way in WAYS:
            ns = part[f"update_ns_{way}"]
            result[f"slices_{way}"] = part[f"slices_{way}"]
            result[f"update_ns_{way}"] = ns
            result[f"update_bytes_per_s_{way}"] = 8192e9 * part["tokens"] / ns if ns else None
        return result

    return {
        "requests": 40, "requests_finished": 40, "steps": total["steps"],
        "tokens_written": total["tokens"], "prompt_tokens": 9876,
        **{f"{w}_{way}": total[f"{w}_{way}"] for w in ("slices", "update_ns") for way in WAYS},
        "bytes_written": 4096 * total["tokens"], "plan_ns": 4321, "plan_ns_merged": 4000,
        "verified_tokens": 12345, "mismatched_tokens": 0, "poison_errors": 0, "plan_errors": 0,
        "elapsed_ns": 10**9, "allocator": "extent", "pages_peak": 79, "pages_leaked": 0,
        "largest_extent_pages": 5, "evictions": sum(columns.get("evictions", [0])),
        "cow_pages": 0, "prefix_hit_tokens": 64, "preemptions": 0, "recomputed_tokens": 0,
        "pages_cached": 11, "copy_limit_bytes_per_s": 3.1e10, "update_bytes_per_s": 2.1e10,
        "limit_fraction": 0.6774, "decode_only": kind(decode),
        "with_prefill": kind({name: total[name] - decode[name] for name in decode}),
        "options": {
            "trace": "/some/where/chat <b> $x$ trace.csv", "arrivals": "now", "page_size": 16,
            "num_pages": 128, "max_num_reqs": 256, "max_num_batched_tokens": 8192,
            "num_kv_heads": 8, "head_dim": 128, "dtype": "bf16", "cache_dtype": "bf16",
            "num_layers": 1, "num_slices_per_block": 64, "threads": 2, "verify": True,
            "isa": "avx2", "version": pagedkv.__version__, "huge_pages": True, "backend": "cpu",
            "prefix_cache": "on", "preempt": "refuse"},
        "format": "azure", "series": None}


def bench_of(scale: float = 1.0) -> list[Json]:
    rows: list[Json] = []
    for impl in ("pagedkv", "memcpy"):
        for pattern in ("decode", "prefill"):
            for layout in ("combined", "nhd"):
                for tokens in (64, 1024):
                    rows.append({
                        "impl": impl, "case": "update", "pattern": pattern, "plan": "exact",
                        "layout": layout, "page_size": 16, "num_kv_heads": 8, "head_dim": 128,
                        "tokens": tokens, "num_slices": 64, "source": "cold", "threads": 1,
                        "src_dtype": "bf16", "cache_dtype": "bf16", "isa": "avx2",
                        "huge_pages": False, "ns_median": 5e4 + tokens, "bytes_per_s": 2e10,
                        "limit_bytes_per_s": 3e10,
                        "limit_fraction": scale * (0.55 + 0.1 * len(rows) % 0.4),
                        "pattern_fraction": scale * 1.25})
    rows.append({**rows[0], "case": "plan", "pattern": "mixed", "limit_fraction": None,
                 "pattern_fraction": None, "bytes_per_s": None, "huge_pages": None})
    return rows


INFO: Json = {"version": pagedkv.__version__, "isa_built": ["c"], "isa_usable": ["c"], "isa": "c",
              "cpu": "A processor & more", "cpus_online": 2, "memory_bytes": 8 << 30}


class Folder:
    """Where a test's files lie."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, value: object) -> str:
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(place)

    def write_run(self, name: str, series: Json | None = None, **changes: object) -> str:
        series = series if series is not None else series_of(12)
        self.write(f"{name}.series.json", series)
        run = {**run_of(series), "series": f"{name}.series.json", **changes}
        return self.write(f"{name}.json", run)

    def page(self, *inputs: str) -> str:
        out = self.path / "page.html"
        assert main([*inputs, "-o", str(out)]) == 0
        return out.read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# ---- what is on the page --------------------------------------------------------------------


def drawn_of(page: str) -> dict[str, Json]:
    match = re.search(r'<script type="application/json" id="pagedkv-drawn">(.*?)</script>', page)
    assert match is not None
    return {panel["title"]: panel for panel in json.loads(match[1])}


def table_of(page: str, name: str) -> dict[str, list[str]]:
    """Rows of a table by their first cell."""
    match = re.search(f'<table data-name="{re.escape(name)}">(.*?)</table>', page, re.DOTALL)
    assert match is not None, name
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", match[1], re.DOTALL):
        cells = [html.unescape(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        rows[cells[0]] = cells[1:]
    return rows


def curves_of(panel: Json) -> dict[str, list[float]]:
    return {curve["name"]: curve["y"] for curve in panel["curves"]}


def svg_of(page: str, title: str) -> str:
    match = re.search(rf"<figcaption>{re.escape(title)}.*?(<svg.*?</svg>)", page, re.DOTALL)
    assert match is not None
    return match[1]


def heights(svg: str, name: str) -> list[float]:
    """Where a curve's marks stand on the paper, from its path."""
    match = re.search(rf'<g id="f\d+-{name}">\s*<path d="([^"]*)"', svg)
    assert match is not None
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", match[1])]


def test_curves_are_those_of_the_series(folder: Folder) -> None:
    series = series_of(30)
    columns = series["columns"]
    drawn = drawn_of(folder.page(folder.write_run("run", series)))
    prefill = [d == 0 for d in columns["decode_only_steps"]]
    decode = [not p for p in prefill]

    def of(name: str, wanted: list[bool], unit: int = 1) -> list[float]:
        return [v / unit for v, w in zip(columns[name], wanted, strict=True) if w]

    for way in WAYS:
        for kind, wanted in (("that only decode", decode), ("with prefill", prefill)):
            slices, time = drawn[f"Slices, steps {kind}"], drawn[f"Time, steps {kind}"]
            assert curves_of(slices)[way] == of(f"slices_{way}", wanted)
            assert curves_of(time)[way] == of(f"update_ns_{way}", wanted, 1000)
    for way in ("static", "merged"):
        ratios = [a / b for a, b, w in zip(columns[f"update_ns_{way}"], columns["update_ns_exact"],
                                           prefill, strict=True) if w]
        found = drawn["Time against exact"]["ratios"][f"with prefill, {way}"]
        assert found[1] == median(ratios)
    assert curves_of(drawn["Pages of the pool"]) == {
        "used": columns["pages_used"], "cached": columns["pages_cached"]}
    assert drawn["Pages of the pool"]["levels"] == {"pool": 128}
    assert curves_of(drawn["Pages that requests share"]).popitem()[1] == columns["pages_shared"]
    assert curves_of(drawn["Evictions, average"]).popitem()[1] == columns["evictions"]


@pytest.mark.parametrize("full", [True, False])
def test_kinds_are_told_apart_where_the_series_can(folder: Folder, full: bool) -> None:
    """With two steps a point, one of each kind: only split columns have the answer."""
    whole = series_of(10, 2)
    series = whole if full else series_of(10, 2, full=False)
    folder.write("s.json", series)
    run = {**run_of(series, whole), "series": "s.json"}
    run["evictions"] = 5 if not full else run["evictions"]
    page = folder.page(folder.write("run.json", run))
    titles = re.findall(r"<figcaption>(.*?)<", page)
    assert ("Slices, steps with prefill" in titles) == full
    assert ("Slices, all steps" in titles) == (not full)
    assert "point by point, each the sum of up to 2 steps" in page or not full
    assert ("100.0 % of the steps are in neither" in page) == (not full)
    assert ("does not tell shared and cached" in page) == (not full)
    rows = table_of(page, "main figures")
    assert rows["decode only, static"][1] == "16.0"  # the average is known in any case
    assert rows["decode only, static"][2] == ("16.0" if full else "–")
    assert rows["with prefill, static"][1] == "72.0"


def test_many_points_become_medians(folder: Folder) -> None:
    whole = series_of(1000)
    series = series_of(1000, full=False)
    folder.write("s.json", series)
    run = {**run_of(series, whole), "series": "s.json"}
    drawn = drawn_of(folder.page(folder.write("run.json", run)))
    curve = drawn["Slices, all steps"]["curves"][1]
    columns = series["columns"]
    assert curve["name"] == "exact"
    assert len(curve["y"]) <= 120
    assert curve["y"] == [median(columns["slices_exact"][i:i + 9]) for i in range(0, 1000, 9)]
    assert curve["x"][:2] == [4.5, 13.5]


def test_the_picture_has_the_heights_of_the_values(folder: Folder) -> None:
    series = series_of(20)
    page = folder.page(folder.write_run("run", series))
    # Each number of the ratios stands on paper, over the line at 1.
    assert svg_of(page, "Time against exact").count("var(--paper)") == 4
    svg = svg_of(page, "Pages of the pool")
    used = series["columns"]["pages_used"]
    ys = heights(svg, "used")
    pool = heights(svg, "pool")[0]
    assert len(ys) == 20
    scale = (ys[0] - pool) / (128 - used[0])
    assert [round(128 - (y - pool) / scale, 3) for y in ys] == used


def test_main_figures(folder: Folder) -> None:
    series = series_of(30)
    run = run_of(series)
    page = folder.page(folder.write_run("run", series))
    part = run["with_prefill"]
    row = table_of(page, "main figures")["with prefill, merged"]
    ns = [n for n, d in zip(series["columns"]["update_ns_merged"],
                            series["columns"]["decode_only_steps"], strict=True) if d == 0]
    rate = median(8192 * 640 / n for n in ns)
    assert row == [str(part["steps"]), "31.0", "31.0",
                   f"{part['update_ns_merged'] / part['steps'] / 1000:.1f} µs",
                   f"{median(ns) / 1000:.1f} µs", row[5], f"{rate:.1f}", f"{rate / 31:.2f}"]
    facts = table_of(page, "what was run")
    assert facts["Trace"] == ["chat <b> $x$ trace.csv (azure)"]
    assert facts["Requests"] == ["40 of 40 finished"]
    assert facts["Run with"] == ["2 threads, avx2, memory in huge pages, CPU"]
    rates = drawn_of(page)["Rates beside the copy limit"]
    assert rates["copy_limit_bytes_per_s"] == 3.1e10
    assert rates["bytes_per_s"]["with_prefill merged"] == pytest.approx(rate * 1e9)
    assert "Empty slices move no bytes" in page
    assert "/some/where" not in page


def test_without_a_series(folder: Folder) -> None:
    run = run_of(series_of(12))
    page = folder.page(folder.write("run.json", run))
    rates = drawn_of(page)["Rates beside the copy limit"]["bytes_per_s"]
    assert rates["decode_only exact"] == run["decode_only"]["update_bytes_per_s_exact"]
    assert "no time series" in page
    assert table_of(page, "pages")["evicted"] == [str(run["evictions"])]


def test_a_check_that_failed_is_told(folder: Folder) -> None:
    page = folder.page(folder.write_run("run", mismatched_tokens=3))
    assert "the check found differences: mismatched_tokens 3" in page


def test_bench(folder: Folder) -> None:
    rows = bench_of()
    page = folder.page(folder.write("bench.json", rows), folder.write("info.json", INFO))
    panel = drawn_of(page)["update"]
    mine = [row for row in rows if row["impl"] == "pagedkv" and row["case"] == "update"]
    assert list(panel["limit_fraction"].values()) == [row["limit_fraction"] for row in mine]
    assert list(panel["pattern_fraction"].values()) == [1.25] * len(mine)
    assert list(panel["limit_fraction"])[:2] == [
        "decode 64 tok combined", "decode 1,024 tok combined"]
    assert table_of(page, "machine")["Machine"] == ["A processor & more"]


def test_two_runs_side_by_side(folder: Folder) -> None:
    first, second = series_of(30), series_of(20)
    page = folder.page(folder.write_run("a", first), folder.write_run("b", second),
                       folder.write("x.json", bench_of()), folder.write("y.json", bench_of(2)))
    drawn = drawn_of(page)
    for name, series in (("a", first), ("b", second)):
        columns = series["columns"]
        assert curves_of(drawn[f"Slices, steps with prefill: {name}"])["exact"] == [
            n for n, d in zip(columns["slices_exact"], columns["decode_only_steps"], strict=True)
            if d == 0]

    def ticks(title: str) -> list[str]:
        return re.findall(r"<text[^>]*>(.*?)</text>", svg_of(page, title))

    same_axes = "Slices, steps with prefill: "
    assert ticks(same_axes + "a") == ticks(same_axes + "b")
    rows = table_of(page, "differences")
    assert rows["steps"] == ["30", "20", "-33.3 %"]
    assert rows["requests finished"] == ["40", "40", "same"]
    differing = table_of(page, "bench differences")
    assert differing["decode 64 tok combined"][-1] == "+100.0 %"
    assert drawn["update: y"]["pattern_fraction"]["decode 64 tok combined"] == 2.5
    assert "The runs were told the same." in page


def test_what_is_compared_is_what_the_tables_say(folder: Folder) -> None:
    """Parts of the limit are medians of a kind of step, as beside them: no average over all."""
    page = folder.page(folder.write_run("a", series_of(30), limit_fraction=0.123),
                       folder.write_run("b", series_of(20)), folder.write("c.json", RUN))
    rows = table_of(page, "differences")
    for name, at in (("a", 0), ("b", 1)):
        alone = table_of(folder.page(str(folder.path / f"{name}.json")), "main figures")
        for kind in ("decode only", "with prefill"):
            for way in WAYS:
                assert rows[f"median part of the limit, {kind}, {way}"][at] == (
                    alone[f"{kind}, {way}"][-1])
                assert rows[f"median time a step, {kind}, {way}"][at] == alone[f"{kind}, {way}"][4]
    assert rows["median part of the limit, with prefill, exact"][-2:] == ["–", "–"]
    assert "0.12" not in [cell for cells in rows.values() for cell in cells]
    assert {"slices of all steps, exact", "planning of all steps, exact"} <= rows.keys()


def test_a_limit_that_is_too_low_is_blamed(folder: Folder) -> None:
    said = "run: steps with prefill lie over the limit"
    for limit, wanted in ((1e9, True), (1e12, False), (None, False)):
        page = folder.page(folder.write_run("run", copy_limit_bytes_per_s=limit))
        assert (said in page) == wanted


def test_one_of_a_thing(folder: Folder) -> None:
    options = {**RUN["options"], "max_num_reqs": 9, "num_kv_heads": 1, "threads": 1}
    run = {**RUN, "requests": 1, "requests_finished": 1, "options": options}
    row = {**bench_of()[0], "layers": 1, "requests": 1, "pages": 1, "num_kv_heads": 1}
    page = folder.page(folder.write("run.json", run), folder.write("bench.json", [row]))
    text = re.sub(r"<[^>]*>", " ", page)
    assert re.findall(r"(?<![\d,.])1 (?:KV )?(?:request|layer|thread|page|head)\b", text)
    assert not re.findall(r"(?<![\d,.])1 (?:KV )?(?:\w+s)\b", text)


def test_times_stand_in_a_unit_that_fits(folder: Folder) -> None:
    series = series_of(30)
    for way in WAYS:  # steps with prefill take some 90 ms, the others a microsecond
        for i, decode in enumerate(series["columns"]["decode_only_steps"]):
            series["columns"][f"update_ns_{way}"][i] *= 1 if decode else 1000
    page = folder.page(folder.write_run("run", series))
    words = {kind: re.findall(r"<text[^>]*>(.*?)</text>", svg_of(page, f"Time, steps {kind}"))
             for kind in ("with prefill", "that only decode")}
    assert "75 ms" in words["with prefill"]
    assert "1 µs" in words["that only decode"]


def test_what_happened_comes_first(folder: Folder) -> None:
    """A row of figures and the plots, then the tables that they were made of."""
    page = folder.page(folder.write_run("a", series_of(30)), folder.write_run("b"),
                       folder.write("bench.json", bench_of()))
    places = [page.index(what) for what in (
        '"at a glance"', "<figcaption>Slices, steps with prefill: a", '"pages"', '"main figures"',
        '"differences"', '"what was run"', "<figcaption>update", '"all rows of bench"',
        '"benches"')]
    assert places == sorted(places)
    rows = table_of(page, "at a glance")
    columns = series_of(30)["columns"]
    prefill = [d == 0 for d in columns["decode_only_steps"]]
    assert rows["a"][:3] == [
        f"{median(n for n, p in zip(columns[f'slices_{way}'], prefill, strict=True) if p):.1f}"
        for way in WAYS]
    # On paper a paragraph goes to the next page with what it stands over.
    assert not re.findall(r"<p(?! class=(?:lead|run))[^>]*>[^<]*</p>\n<div", page)
    style = (files("pagedkv.report") / "page.css").read_text()
    assert re.search(r"@media print.*\.run, \.lead[^{]*\{ break-after: avoid", style, re.DOTALL)


def test_bench_rows_say_what_is_their_own(folder: Folder) -> None:
    rows = bench_of()
    page = folder.page(folder.write("bench.json", [*rows, {**rows[0], "case": "layout"}]))
    assert ("<p class=lead>All rows: page 16, exact, cold, 1 thread, ordinary pages, 8 heads, "
            "D 128, from bf16, to bf16, avx2.</p>") in page
    found = table_of(page, "all rows of bench")
    assert list(found) == ["row", *(f"{pattern} {tokens:,} tok {layout}"
                                    for pattern in ("decode", "prefill")
                                    for layout in ("combined", "nhd") for tokens in (64, 1024)),
                           "all"]
    assert found["row"][:4] == ["of limit", "of loop", "time", "GB/s"]
    assert "of NumPy" not in found["row"]
    # One grid, and no title over a panel that says the same.
    assert page.count('<div class="panels">') == 1
    assert "<h3>update" not in page


def test_names_of_files_stay_apart(folder: Folder) -> None:
    inputs = [folder.write(f"{name}/run.json", run_of(series_of(3))) for name in ("old", "new")]
    assert list(table_of(folder.page(*inputs), "what was run")[""]) == ["old/run", "new/run"]


def test_the_page_needs_nothing_else(folder: Folder) -> None:
    page = folder.page(folder.write_run("run"), folder.write("bench.json", bench_of()))
    assert not re.search(r"https?:|//\w|@import|src=|<link|url\((?!#f\d)", page)
    assert page.count("<script") == 1
    names = re.findall(r'\bid="([^"]*)"', page)
    assert len(names) == len(set(names))
    for target in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page):
        assert (target[0] or target[1]) in names
    assert "#0101" not in page  # every colour is one of the page's


def test_the_same_files_make_the_same_page(folder: Folder) -> None:
    run = folder.write_run("run")
    assert folder.page(run) == folder.page(run)


def test_series_is_found(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the run, in the working directory, or beside it by its last name."""
    (folder.path / "work").mkdir()
    series = series_of(6)
    folder.write("work/in_work.json", series)
    folder.write("beside.json", series)
    monkeypatch.chdir(folder.path / "work")
    for named in ("beside.json", "in_work.json", "elsewhere/beside.json"):
        run = read(folder.write("run.json", {**run_of(series), "series": named}))
        assert isinstance(run, Replay)
        assert run.series is not None


def luminance(colour: str) -> float:
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_told_from_the_paper() -> None:
    style = (files("pagedkv.report") / "page.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6});", block))
               for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(schemes) == 2
    for scheme in schemes:
        for name in ("ink", "muted", "static", "exact", "merged", "limit", "alarm"):
            a, b = sorted((luminance(scheme["paper"]), luminance(scheme[name])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, name


# ---- bad input ------------------------------------------------------------------------------


def edit(value: Any, *path: Any, to: object) -> Any:
    value = copy.deepcopy(value)
    at = value
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = to
    return value


def without(value: Json, name: str) -> Json:
    return {key: item for key, item in value.items() if key != name}


RUN = run_of(series_of(6))
SERIES = series_of(6)
NEWER = f"{int(pagedkv.__version__.split('.')[0]) + 1}.0.0"

BAD_FILES: dict[str, tuple[object, str]] = {
    "empty": ("", "empty"),
    "cut short": (json.dumps(RUN)[:900], "cut short"),
    "not JSON": ('{"steps": 1,\n "x" 2}', "line 2: not JSON"),
    "no number": ('{"steps": NaN}', "NaN is no number"),
    "two documents": (json.dumps(RUN) + "{}", "line 1: something stands behind"),
    "something behind it": (json.dumps(RUN, indent=1) + "\nx", r"line \d+: something .* behind"),
    "deep": ("[" * 100000 + "]" * 100000, "nested too deeply|not"),
    "long number": ('{"steps": ' + "9" * 9999 + "}", "not JSON"),
    "a number beyond all": (edit(RUN, "copy_limit_bytes_per_s", to=10**400), "is not a number"),
    "a row beyond all": (edit(bench_of(), 1, "ns_median", to=10**400), 'row 2: "ns_median" is not'),
    "another JSON": ({"name": "x", "version": 2}, "not the JSON of pagedkv"),
    "a number": ("7", "not the JSON of pagedkv"),
    "a plan": ({"slices": [[0, 0, 1]], "num_slices": 1}, "not the JSON of pagedkv"),
    "a series": (SERIES, "a series alone"),
    "newer": (edit(RUN, "options", "version", to=NEWER), f"written by pagedkv {NEWER}"),
    "older": (edit(RUN, "options", "version", to="0.0.9"), "written by pagedkv 0.0.9"),
    "no version": (edit(RUN, "options", "version", to="new"), "which is none"),
    "no field": (without(RUN, "pages_peak"), 'no field "pages_peak"'),
    "no steps": (run_of({"columns": {name: [] for name in SERIES["columns"]}}), "no steps"),
    "below 0": (edit(RUN, "pages_peak", to=-1), '"pages_peak" is not a count'),
    "no count": (edit(RUN, "pages_peak", to=True), '"pages_peak" is not a count'),
    "more than the pool": (edit(RUN, "pages_peak", to=129), '"pages_peak" is more than "num_pag'),
    "wrong sum": (edit(RUN, "slices_exact", to=1), '"slices_exact" is not the sum'),
    "half a kind": (edit(RUN, "with_prefill", to=[]), "with_prefill: an object"),
    "newer info": ({**INFO, "version": NEWER}, f"written by pagedkv {NEWER}"),
    "no rows": ([], "no rows"),
    "rows of something": ([{"a": 1}], "row 1: not a row"),
    "rows without a field": ([without(row, "limit_fraction") for row in bench_of()],
                             'row 1: no field "limit_fraction"'),
    "a row with text": (edit(bench_of(), 1, "ns_median", to="fast"), 'row 2: "ns_median"'),
    "a row with null": (edit(bench_of(), 1, "ns_median", to=None), 'row 2: "ns_median"'),
    "others' rows": ([row for row in bench_of() if row["impl"] != "pagedkv"], "no row of pagedkv"),
}

BAD_SERIES: dict[str, tuple[object, str]] = {
    "cut short": (json.dumps(SERIES)[:500], "cut short"),
    "another version": ({**SERIES, "version": 2}, "a series of version 2"),
    "no series": ({"a": 1}, "not the series"),
    "no column": (edit(SERIES, "columns", to=without(SERIES["columns"], "running")),
                  'columns: no field "running"'),
    "half of the split": (edit(SERIES, "columns", to=without(
        SERIES["columns"], "decode_only_tokens")), 'no field "decode_only_tokens"'),
    "a shorter column": (edit(SERIES, "columns", "running", to=[1]), "different lengths"),
    "text": (edit(SERIES, "columns", "running", 2, to="x"), '"running" is not an array of counts'),
    "a point without steps": (edit(SERIES, "columns", "steps", 2, to=0), "a point without steps"),
    "more decode than all": (edit(SERIES, "columns", "decode_only_tokens", 1, to=10**6),
                             'more than "tokens"'),
    "more than the pool": (edit(SERIES, "columns", "pages_used", 1, to=129),
                           r'"pages_used" is 129 in 1 steps, more than .* "num_pages", 128'),
    "more cached than the pool": (edit(SERIES, "columns", "pages_cached", 1, to=129),
                                  r'"pages_cached" is 129 in 1 steps'),
    "more requests than may": (edit(SERIES, "columns", "running", 1, to=257),
                               r'"running" is 257 in 1 steps, more than the run\'s "max_num_reqs"'),
    "more shared than used": (edit(SERIES, "columns", "pages_shared", 1, to=100),
                              '"pages_shared" is more than "pages_used"'),
    "a point too long": (edit(SERIES, "columns", "steps", 2, to=2), "a point of 2 steps, where 1"),
    "points too long": ({**SERIES, "steps_per_point": 1 << 62}, '"steps_per_point" is 46.*, more'),
    "points cut off": (series_of(5), 'not the whole series of this run: "steps" adds up to 5'),
    "another run's": (edit(SERIES, "columns", "slices_merged", 0, to=1), "not the whole series"),
}


def check_refused(folder: Folder, inputs: list[str], said: str, at: str,
                  capsys: pytest.CaptureFixture[str], output: str = "page.html") -> None:
    """Status 2, one line that begins with the file, and the page that was there stays."""
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert main([*inputs, "-o", str(folder.path / output)]) == 2
    got = capsys.readouterr()
    assert got.out == ""
    assert re.fullmatch(r"pagedkv\.report: [^\n]+\n", got.err), got.err
    assert got.err.startswith(f"pagedkv.report: {at}: "), got.err
    assert re.search(said, got.err), got.err
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(folder: Folder, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, said = BAD_FILES[name]
    folder.write("page.html", "an older page")
    bad = folder.write("bad.json", content)
    check_refused(folder, [folder.write_run("good"), bad], said, bad, capsys)


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_series(folder: Folder, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, said = BAD_SERIES[name]
    series = folder.write("s.json", content)
    run = folder.write("run.json", {**RUN, "series": "s.json"})
    check_refused(folder, [run], said, series, capsys)


def test_files_that_cannot_be_read(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder.write("run.json", {**RUN, "series": "gone.json"})
    check_refused(folder, [run], 'its series "gone.json" is no file beside', run, capsys)
    for named in ("", ".", "..", "/", "a\0b"):
        run = folder.write("run.json", {**RUN, "series": named})
        check_refused(folder, [run], 'its series "[^"]*" is no file', run, capsys)
    check_refused(folder, [str(folder.path)], "directory", str(folder.path), capsys)
    gone = str(folder.path / "gone.json")
    check_refused(folder, [gone], "No such file", gone, capsys)
    check_refused(folder, ["/dev/zero"], "more than 64 MiB", "/dev/zero", capsys)
    latin = folder.path / "latin.json"
    latin.write_bytes(b'{"caf\xe9": 1}')
    check_refused(folder, [str(latin)], "not UTF-8", str(latin), capsys)
    odd = folder.write("a\nb.json", "")
    check_refused(folder, [odd], "empty", odd.replace("\n", "?"), capsys)


def test_outputs_that_cannot_be_written(folder: Folder, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    run = folder.write_run("run")
    missing = str(folder.path / "missing" / "page.html")
    check_refused(folder, [run], "No such file", missing, capsys, "missing/page.html")
    check_refused(folder, [run], "directory", str(folder.path), capsys, ".")
    check_refused(folder, [run], "it is an input", run, capsys, "run.json")

    full_run = folder.write_run("full")
    series = folder.path / "full.series.json"
    (folder.path / "link.json").symlink_to("full.series.json")
    os.link(series, folder.path / "hard.json")
    folder.write("there/x", "")
    for name in ("full.series.json", "link.json", "hard.json", "there/../full.series.json"):
        check_refused(folder, [full_run], "it is the series of full, and would be replaced",
                      str(folder.path / name), capsys, name)

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    check_refused(folder, [run], "No space", str(folder.path / "page.html"), capsys)


def test_every_beginning_of_a_file(folder: Folder) -> None:
    text = json.dumps(RUN)
    place = folder.path / "run.json"
    for end in range(0, len(text), 7):
        place.write_text(text[:end])
        with pytest.raises(InputError, match="cut short|empty|not JSON"):
            read(place)
    place.write_text(text)
    assert isinstance(read(place), Replay)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value[:2]) for p in leaves(item, (*path, i))]
    return [path]


@pytest.mark.parametrize("value", [RUN, bench_of()[:1], INFO], ids=["run", "bench", "info"])
def test_every_field_with_something_else(folder: Folder, value: Any) -> None:
    """Read or refused: no field makes anything else happen."""
    place = folder.path / "x.json"
    refused = 0
    for path in leaves(value):
        for other in (None, -1, 1.5, 10**30, "text", "\ud800", [], {}, True):
            place.write_text(json.dumps(edit(value, *path, to=other)))
            try:
                assert isinstance(read(place), (Replay, Bench, Machine))
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
                str(error).encode()
    assert refused > 10


def test_odd_text_is_shown_as_text(folder: Folder) -> None:
    options = {**RUN["options"], "trace": "x/</script><b>\ud800\u0007$\\frac$", "isa": "<i>"}
    row = {**bench_of()[0], "pattern": "</svg><script>$_^{", "layout": "\u202e\ud800"}
    page = folder.page(folder.write("</p>.json", {**RUN, "options": options}),
                       folder.write("bench.json", [row, bench_of()[0]]))
    assert page.count("<script") == 1
    assert "<i>" not in page
    assert "&lt;i&gt;" in page


def test_without_matplotlib(folder: Folder, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([folder.write_run("run"), "-o", str(folder.path / "page.html")]) == 2
    assert capsys.readouterr().err == (
        "pagedkv.report: the plots need matplotlib: pip install 'pagedkv[report]'\n")
    assert not (folder.path / "page.html").exists()


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a.json"], ["-o", "x.html"], ["--what", "a.json", "-o", "x.html"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert re.fullmatch(r"pagedkv\.report: [^\n]+\n", capsys.readouterr().err)


# ---- the program and a browser ----------------------------------------------------------------


def module(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pagedkv.report", *arguments], cwd=cwd,
                          capture_output=True, text=True, timeout=300)


def test_help_and_standard_output(folder: Folder) -> None:
    done = module("--help", cwd=folder.path)
    assert done.returncode == 0
    assert "--output" in done.stdout
    folder.write_run("run")
    done = module("run.json", "-o", "-", cwd=folder.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("</html>\n")


def program() -> str:
    """The program that `make test` has built before it comes here, or the one of `make`."""
    named = os.environ.get("PAGEDKV_PROGRAM")
    places = [Path(named)] if named else [ROOT / "build" / "test" / "release" / "pagedkv",
                                          ROOT / "build" / "pagedkv"]
    found = next((place for place in places if place.is_file()), None)
    assert found is not None, "no pagedkv program: run `make`, or name one with PAGEDKV_PROGRAM"
    return str(found)


def test_what_the_program_writes(folder: Folder) -> None:
    def run(*arguments: str) -> None:
        subprocess.run([program(), *arguments, "--quiet"], cwd=folder.path, check=True,
                       capture_output=True, timeout=300,
                       env={**os.environ, "OMP_WAIT_POLICY": "passive"})

    run("replay", str(ROOT / "tests" / "data" / "mooncake_small.jsonl"), "--prefix-cache", "on",
        "--json", "run.json", "--series", "run.series.json", "--num-pages", "4096")
    run("bench", "update", "plan", "--quick", "--rounds", "1", "--peers", "off",
        "--json", "bench.json")
    with (folder.path / "info.json").open("w") as info:
        subprocess.run([program(), "info", "--json", "-"], stdout=info, check=True, timeout=300)
    page = folder.page(*(str(folder.path / f"{name}.json") for name in ("run", "bench", "info")))
    wrote = json.loads((folder.path / "run.json").read_text())
    assert table_of(page, "what was run")["Tokens written"] == [f"{wrote['tokens_written']:,}"]
    rows = json.loads((folder.path / "bench.json").read_text())
    mine = [row["limit_fraction"] for row in rows
            if row["impl"] == "pagedkv" and row["case"] == "update"]
    shown = [value for panel in drawn_of(page).values()
             for value in panel.get("limit_fraction", {}).values()]
    assert sorted(shown) == sorted(mine)


def chromium(*arguments: str) -> str:
    done = subprocess.run(
        [ROOT / "tests" / "python" / "browser.py", "--headless", "--no-sandbox", "--disable-gpu",
         "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", *arguments],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Looks at every page in a frame of every width, which a window of a browser need not have.
LOOK = """
<script>
window.addEventListener("load", () => {
  const all = [...document.querySelectorAll("iframe")].map(frame => {
    const inside = frame.contentDocument, width = frame.clientWidth, root = inside.documentElement;
    const place = e => { const r = e.getBoundingClientRect(); return [r.left, r.right]; };
    const beyond = [...inside.querySelectorAll("body *")].filter(e => {
      const [left, right] = place(e);
      return right > left && !e.closest(".table table") && (right > width + 1 || left < -1);
    });
    const texts = [...inside.querySelectorAll("svg text")];
    const sizes = texts.map(e => parseFloat(getComputedStyle(e).fontSize) *
                                 e.ownerSVGElement.getScreenCTM().a);
    const hits = [];
    for (const svg of inside.querySelectorAll("svg")) {
      const boxes = [...svg.querySelectorAll("text")].map(e => [e, e.getBoundingClientRect()]);
      boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
        if (p.left + 1 < q.right && q.left + 1 < p.right && p.top + 3 < q.bottom &&
            q.top + 3 < p.bottom) hits.push(a.textContent + " | " + b.textContent);
      }));
    }
    return {page: frame.name, width, scroll: root.scrollWidth, hits,
            beyond: beyond.map(e => e.tagName + " " + e.textContent.slice(0, 40)),
            smallest: Math.min(...sizes), texts: texts.length,
            columns: Math.max(...[...inside.querySelectorAll(".panels")].map(
                e => getComputedStyle(e).gridTemplateColumns.split(" ").length)),
            first: inside.querySelector("figure").getBoundingClientRect().top,
            figures: inside.querySelectorAll("figure svg").length,
            paper: getComputedStyle(inside.body).backgroundColor,
            ink: texts.length ? getComputedStyle(texts[0]).fill : "",
            body: inside.body.innerText};
  });
  document.body.textContent = JSON.stringify(all);
});
</script>
"""


def look(folder: Folder, pages: dict[str, str], *arguments: str) -> list[Json]:
    frames = "".join(
        f'<iframe name="{name}" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>\n'
        for name, page in pages.items() for width in WIDTHS)
    place = folder.write("frames.html", f"<!doctype html>{LOOK}<body>{frames}</body>")
    dom = chromium(*arguments, "--dump-dom", Path(place).as_uri())
    match = re.search(r"<body>(\[.*\])</body>", dom, re.DOTALL)
    assert match is not None, dom[:400]
    found: list[Json] = json.loads(html.unescape(match[1]))
    assert len(found) == len(pages) * len(WIDTHS)
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A replay with its series and one without, a bench, and two of each side by side."""
    folder = Folder(tmp_path_factory.mktemp("pages"))
    run = folder.write_run("a_run_with_quite_a_long_name", series_of(200))
    bench = folder.write("bench.json", bench_of())
    return {
        "run": folder.page(run, folder.write("info.json", INFO)),
        "plain": folder.page(folder.write("plain.json", RUN)), "bench": folder.page(bench),
        "two": folder.page(run, folder.write_run("b", series_of(2000, 2)), bench,
                           folder.write("bench2.json", bench_of(1.2))),
    }


def test_pages_fit_every_width(folder: Folder, pages: dict[str, str]) -> None:
    for seen in look(folder, pages, "--blink-settings=preferredColorScheme=1"):
        where = f"{seen['page']} at {seen['width']}"
        assert seen["scroll"] <= seen["width"], where
        assert seen["beyond"] == [], where
        assert seen["hits"] == [], where
        assert seen["smallest"] >= 10.5, where
        assert seen["figures"] == pages[seen["page"]].count("<figure>") > 0, where
        assert seen["texts"] == len(re.findall(r"<text", pages[seen["page"]])), where
        assert (seen["columns"] == 1) == (seen["width"] == 375), where
        assert seen["paper"] == "rgb(255, 255, 255)", where
        assert seen["first"] < (500 if seen["width"] > 375 else 680), where
        for title in re.findall(r"<(?:h[123]|figcaption)>(.*?)<", pages[seen["page"]]):
            assert html.unescape(title) in seen["body"], where


def test_dark(folder: Folder, pages: dict[str, str]) -> None:
    for seen in look(folder, {"run": pages["run"]}, "--blink-settings=preferredColorScheme=0"):
        assert (seen["paper"], seen["ink"]) == ("rgb(21, 24, 28)", "rgb(233, 235, 238)")


def test_a_page_that_is_too_wide_is_seen(folder: Folder, pages: dict[str, str]) -> None:
    """The look itself can fail."""
    wide = pages["plain"].replace("<h1>", '<div style="width:900px">wide</div><h1>', 1)
    assert [bool(seen["beyond"]) for seen in look(folder, {"wide": wide})] == [True, True, False]


def test_print(folder: Folder, pages: dict[str, str]) -> None:
    paper = folder.path / "page.pdf"
    chromium("--no-pdf-header-footer", f"--print-to-pdf={paper}",
             Path(folder.write("page.html", pages["run"])).as_uri())
    data = paper.read_bytes()
    boxes = re.findall(rb"/MediaBox \[0 0 (\S+) (\S+)\]", data)
    assert 2 <= len(boxes) <= 5
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}
