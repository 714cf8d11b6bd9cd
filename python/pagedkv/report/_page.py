"""The page: what replays show, and all of it put together in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from statistics import median

from pagedkv import __version__

from ._bench import add_benches
from ._figures import (
    KIND_NAMES,
    MARKS,
    Curve,
    Panel,
    Plotter,
    curve_of,
    median_rate,
    paired_ratios,
    per_step,
    points_a_mark,
    quartiles,
    rate_of,
    short,
    short_time,
    way_curves,
)
from ._html import (
    NOTHING,
    Page,
    count_words,
    difference,
    escaped,
    facts,
    number_words,
    paragraph,
    percent_words,
    plural,
    size_words,
    table,
    time_words,
)
from ._read import KINDS, WAYS, Bench, Machine, Replay


def _machine_words(run: Replay) -> str:
    options = run.options
    words = [f"{plural(options['threads'], 'thread')}, {options['isa']}"]
    if options["huge_pages"]:
        words.append("memory in huge pages")
    words.append(options["device"] or options["backend"].upper())
    return ", ".join(words)


def _pool_words(run: Replay) -> str:
    return (f"{plural(run.options['num_pages'], 'page')} of "
            f"{plural(run.options['page_size'], 'token')}")


def _checked_words(run: Replay) -> str:
    if not run.options["verify"]:
        return "not checked (--verify off)"
    return (f"{plural(run.counts['verified_tokens'], 'token')}, "
            f"{run.counts['mismatched_tokens']:,} differ")


def _lede_words(run: Replay) -> str:
    requests, finished = run.counts["requests"], run.counts["requests_finished"]
    done = "" if finished == requests else f"{finished:,} finished, "
    return (f"{run.options['trace']}, {plural(requests, 'request')}, {done}"
            f"{plural(run.counts['steps'], 'step')}, {_pool_words(run)}. "
            f"Read back: {_checked_words(run)}.")


def _add_lede(page: Page, runs: Sequence[Replay]) -> None:
    """Each run in a line, and in a row of figures."""
    for run in runs:
        page.add(paragraph(f"{run.name}: {_lede_words(run)}" if len(runs) > 1
                           else _lede_words(run), "run"))
        wrong = {name: run.counts[name] for name in
                 ("mismatched_tokens", "poison_errors", "plan_errors", "pages_leaked")
                 if run.counts[name] > 0}
        if wrong:
            found = ", ".join(f"{name} {n:,}" for name, n in wrong.items())
            page.add(paragraph(f"{run.name}: the check found differences: {found}. Its figures "
                                "are those of a wrong run.", "alarm"))
    page.add(table(
        ["run", *WAYS, "static", "exact", "prefill", "decode", "prefill", "decode"],
        [_glance_row(run) for run in runs], name="at a glance",
        over=[("", 1), ("slices, step with prefill", 3), ("decode only", 2),
              ("update time, exact", 2), ("of the copy limit", 2)]))
    average = any(run.series is None for run in runs)
    page.add(paragraph(
        f"Medians{'; of a run without a series averages' if average else ''}. Every step is "
        "written three times: static visits all columns of a padded plan, exact the real ones, "
        "merged fewer, with neighbouring pages joined. Empty slices move no bytes, so fewer "
        "slices alone are no speedup.", "lead"))


def _glance_row(run: Replay) -> list[str]:
    decode, prefill = KINDS

    def typical(what: str, way: str, kind: str) -> float | None:
        found = _median_of(run, f"{what}_{way}", kind)
        part = run.kinds[kind]
        if found is None and part.steps:
            return float(getattr(part, what)[way] / part.steps)
        return found
    return [
        run.name, *(number_words(typical("slices", way, prefill)) for way in WAYS),
        *(number_words(typical("slices", way, decode)) for way in ("static", "exact")),
        *(time_words(typical("update_ns", "exact", kind)) for kind in (prefill, decode)),
        *(number_words(_of_limit(run, kind, "exact")) for kind in (prefill, decode))]


def _of_limit(run: Replay, kind: str, way: str) -> float | None:
    rate, limit = rate_of(run, kind, way), run.copy_limit_bytes_per_s
    return None if rate is None or not limit else rate / limit


def _add_told(page: Page, runs: Sequence[Replay]) -> None:
    def row(title: str, of: Callable[[Replay], str]) -> tuple[str, list[str]]:
        return title, [of(run) for run in runs]
    rows = [
        row("Trace", lambda r: f"{r.options['trace']} ({r.format})"),
        row("Requests", lambda r: f"{r.counts['requests_finished']:,} of "
                                  f"{r.counts['requests']:,} finished"),
        row("Steps", lambda r: f"{r.counts['steps']:,}: {r.kinds['decode_only'].steps:,} decode "
                               f"only, {r.kinds['with_prefill'].steps:,} with prefill"),
        row("Tokens written", lambda r: f"{r.counts['tokens_written']:,}"),
        row("Read back", _checked_words),
        row("Cache", lambda r: f"{_pool_words(r)}, {plural(r.options['num_layers'], 'layer')} "
                               f"of {plural(r.options['num_kv_heads'], 'KV head')} x "
                               f"{r.options['head_dim']}, {r.options['cache_dtype']}"),
        row("A step at most", lambda r: f"{plural(r.options['max_num_reqs'], 'request')}, "
            f"{plural(r.options['max_num_batched_tokens'], 'token')}"),
        row("Pages", lambda r: f"allocator {r.allocator}, prefix cache "
                               f"{r.options['prefix_cache']}, preempt {r.options['preempt']}"),
        row("Run with", _machine_words),
        row("Program", lambda r: f"pagedkv {r.options['version']}"),
    ]
    page.add("<h2>What was run</h2>\n", facts([run.name for run in runs], rows, "what was run"))


def _median_of(run: Replay, column: str, kind: str) -> float | None:
    """The median over the series' points; None where there is nothing to take it of."""
    if run.series is None:
        return None
    values = [value for value in per_step(run.series, column, kind) if value is not None]
    return median(values) if values else None


def _quartiles_of(run: Replay, column: str, kind: str) -> str:
    if run.series is None:
        return NOTHING
    values = [value for value in per_step(run.series, column, kind) if value is not None]
    if not values:
        return NOTHING
    low, _, high = quartiles(values)
    return f"{time_words(low)} to {time_words(high)}"


def _main_rows(run: Replay) -> list[list[str]]:
    """The main figures of one run: a row for each kind of steps and way."""
    rows = []
    for kind in KINDS:
        part = run.kinds[kind]
        for way in WAYS if part.steps else ():
            rate = rate_of(run, kind, way)
            rows.append([
                f"{KIND_NAMES[kind]}, {way}", count_words(part.steps),
                number_words(part.slices[way] / part.steps),
                number_words(_median_of(run, f"slices_{way}", kind)),
                time_words(part.update_ns[way] / part.steps),
                time_words(_median_of(run, f"update_ns_{way}", kind)),
                _quartiles_of(run, f"update_ns_{way}", kind),
                NOTHING if rate is None else number_words(rate / 1e9),
                number_words(_of_limit(run, kind, way))])
    return rows


_MAIN_HEAD = ["steps, way", "steps", "average", "median", "average", "median", "quartiles", "GB/s",
              "of limit"]
_MAIN_OVER = [("", 2), ("slices a step", 2), ("update time a step", 3), ("rate", 2)]


def _add_main_figures(page: Page, runs: Sequence[Replay]) -> None:
    page.add("<h2>All figures of the three ways</h2>\n", paragraph(
        "Averages are over the steps of one kind, in which one long pause of the machine weighs "
        "as much as a thousand steps; medians and quartiles are over the points of the time "
        "series, as GB/s (read plus written) and the part of the copy limit are, but of a run "
        "without a series. Times are of the update alone.", "lead"))
    page.add(table(_MAIN_HEAD, name="main figures", over=_MAIN_OVER, sections=[
        (run.name if len(runs) > 1 else "", "", _main_rows(run)) for run in runs]))
    with_series = [run for run in runs if run.series is not None]
    ratios = [(run.name if len(runs) > 1 else "", "", _ratio_rows(run)) for run in with_series]
    if any(rows for _, _, rows in ratios):
        page.add("<h3>Time against exact</h3>\n", table(
            ["steps, way", "median", "quartiles", "points"], name="ratios",
            sections=[section for section in ratios if section[2]]))


def _ratio_rows(run: Replay) -> list[list[str]]:
    return [[f"{KIND_NAMES[kind]}, {way}", f"{q[1]:.3f}", f"{q[0]:.3f} to {q[2]:.3f}",
             count_words(len(values))]
            for kind in KINDS for way in ("static", "merged")
            if (values := paired_ratios(run, kind, way)) and (q := quartiles(values))]


def _add_steps(page: Page, plotter: Plotter, runs: Sequence[Replay]) -> None:
    """Slices and times over the run, and the rates."""
    with_series = [run for run in runs if run.series is not None]
    page.add("<h2>Slices and update time of a step</h2>\n")

    def over_run(title: str, what: str, kind: str | None) -> list[Panel]:
        is_time = what == "update_ns"
        return plotter.over_run(
            title, "time a step" if is_time else "slices a step",
            [(run.name, way_curves(run, what, kind, 1000 if is_time else 1), {})
             for run in with_series], may_be_log=True, words=short_time if is_time else short)
    rows = [over_run("Slices, steps with prefill", "slices", "with_prefill"),
            over_run("Slices, steps that only decode", "slices", "decode_only")]
    # An average over both kinds describes neither: only where they are not told apart.
    if not all(run.series.splits_kinds for run in with_series if run.series is not None):
        rows.append(over_run("Slices, all steps", "slices", None))
    rows += [over_run("Time, steps with prefill", "update_ns", "with_prefill"),
             over_run("Time, steps that only decode", "update_ns", "decode_only"),
             plotter.ratios(with_series), plotter.rates(runs)]
    page.add_panels(rows)
    if with_series:
        page.add(paragraph(
            f"{_marks_words(with_series)} The axis is logarithmic where the ways differ by more "
            "than its height could show. A step that only decodes writes one token a request: "
            "such slices have nothing to be joined with, so merged is exact there. Time against "
            "exact is the median of the ratios, with bars from the first to the third quartile, "
            "of updates of the same steps right after each other."))
    else:
        page.add(paragraph("The run has no time series (--series): figures are averages of each "
                           "kind of step."))
    for run in with_series:
        _add_untold(page, run)
    page.add(paragraph(
        "On a CPU a static step costs some nanoseconds a column more than an exact one, and no "
        "more. The copy limit is the best plain contiguous copy of the machine, taken once before "
        "the first step, and the new K/V of a step are fresh in the processor's cache, so small "
        "steps can lie over it. A bench takes limit and update side by side."))
    over = [run.name for run in runs if (_of_limit(run, "with_prefill", "exact") or 0) > 1]
    if over:
        page.add(paragraph(
            f"{', '.join(over)}: steps with prefill lie over the limit. It was taken once, at "
            "another moment of a shared machine: compare the rates of this run with each other, "
            "not with its limit."))


def _marks_words(runs: Sequence[Replay]) -> str:
    words = []
    for run in runs:
        assert run.series is not None
        group, k = points_a_mark(run.series), run.series.steps_per_point
        name = f" of {run.name}" if len(runs) > 1 else ""
        points = ("is one step" if group * k == 1 else
                  f"is the median of up to {plural(group, 'point')} of {plural(k, 'step')}")
        words.append(f"Each mark{name} {points}.")
    return " ".join([*words, "Short peaks are not seen."])


def _add_untold(page: Page, run: Replay) -> None:
    """Points that hold both kinds of steps and one sum over them are in neither picture."""
    series = run.series
    if series is None or series.splits_kinds:
        return
    steps = sum(series.columns["steps"])
    told = sum(sum(series.told_apart(kind)) for kind in KINDS)
    if told < steps:
        page.add(paragraph(
            f"{run.name}: its series adds up both kinds of steps where they lie in one point, so "
            f"{percent_words(steps - told, steps)} of the steps are in neither of the two "
            "pictures, their medians and quartiles. The averages in the table are of all steps."))


def _add_pages(page: Page, plotter: Plotter, runs: Sequence[Replay]) -> None:
    page.add("<h2>Pages</h2>\n")
    with_series = [run for run in runs if run.series is not None]
    rows = [plotter.over_run("Pages of the pool", "pages", [
        (run.name, _pool_curves(run), {"pool": run.options["num_pages"]})
        for run in with_series])]
    for column, title, label in (("pages_shared", "Pages that requests share", "pages"),
                                 ("evictions", "Evictions, average", "pages a step"),
                                 ("running", "Requests that run", "requests")):
        curves: list[tuple[str, list[Curve], dict[str, float]]] = [
            (run.name, curve_of(run, column, title, "exact", average=column == "evictions"), {})
            for run in with_series]
        if any(y > 0 for _, found, _ in curves for curve in found for y in curve.y):
            rows.append(plotter.over_run(title, label, curves))
    page.add_panels(rows)
    lacking = [run.name for run in with_series if run.series is not None
               and "pages_shared" not in run.series.columns]
    if lacking:
        page.add(paragraph(f"{', '.join(lacking)}: the series does not tell shared and cached "
                            "pages and evictions over time; their totals are below.", "lead"))
    head = ["pages", *(run.name for run in runs)]
    page.add(table(head, [[title, *(of(run) for run in runs)] for title, of in _PAGE_ROWS],
                    name="pages"))


def _pool_curves(run: Replay) -> list[Curve]:
    cached = curve_of(run, "pages_cached", "cached", "merged")
    return [*curve_of(run, "pages_used", "used", "exact"),
            *(curve for curve in cached if any(curve.y))]


_PAGE_ROWS: tuple[tuple[str, Callable[[Replay], str]], ...] = (
    ("in the pool", lambda r: count_words(r.options["num_pages"])),
    ("in use at the peak", lambda r: f"{count_words(r.counts['pages_peak'])} "
        f"({percent_words(r.counts['pages_peak'], r.options['num_pages'])})"),
    ("cached at the end", lambda r: count_words(r.counts["pages_cached"])),
    ("evicted", lambda r: count_words(r.counts["evictions"])),
    ("free pages in a row, at the worst moment",
     lambda r: count_words(r.counts["largest_extent_pages"])),
    ("prompt tokens found", lambda r: f"{count_words(r.counts['prefix_hit_tokens'])} "
        f"({percent_words(r.counts['prefix_hit_tokens'], r.counts['prompt_tokens'])})"),
    ("requests put back", lambda r: count_words(r.counts["preemptions"])),
    ("tokens written again", lambda r: count_words(r.counts["recomputed_tokens"])),
    ("leaked", lambda r: count_words(r.counts["pages_leaked"])),
)


# ---- runs side by side --------------------------------------------------------------------


_Figure = tuple[str, Callable[[Replay], "float | None"], Callable[["float | None"], str]]


def _compared() -> list[_Figure]:
    def count(name: str) -> Callable[[Replay], float | None]:
        return lambda run: run.counts[name]

    def slices(way: str) -> Callable[[Replay], float | None]:
        return lambda run: run.total("slices", way)

    def time(kind: str, way: str) -> Callable[[Replay], float | None]:
        return lambda run: _median_of(run, f"update_ns_{way}", kind)

    def of_limit(kind: str, way: str) -> Callable[[Replay], float | None]:
        return lambda run: (None if median_rate(run, kind, way) is None
                            else _of_limit(run, kind, way))

    rows: list[_Figure] = [(title, count(name), count_words) for title, name in (
        ("requests finished", "requests_finished"), ("steps", "steps"),
        ("tokens written", "tokens_written"), ("prompt tokens found", "prefix_hit_tokens"),
        ("tokens written again", "recomputed_tokens"), ("pages at the peak", "pages_peak"),
        ("pages evicted", "evictions"))]
    rows += [(f"slices of all steps, {way}", slices(way), count_words) for way in WAYS]
    rows += [(f"median time a step, {KIND_NAMES[kind]}, {way}", time(kind, way), time_words)
             for kind in KINDS for way in WAYS]
    rows.append(("planning of all steps, exact", lambda r: r.counts["plan_ns"], time_words))
    rows.append(("copy limit, GB/s", lambda r: None if r.copy_limit_bytes_per_s is None
                 else r.copy_limit_bytes_per_s / 1e9, number_words))
    rows += [(f"median part of the limit, {KIND_NAMES[kind]}, {way}", of_limit(kind, way),
              number_words) for kind in KINDS for way in WAYS]
    return rows


def _add_comparison(page: Page, runs: Sequence[Replay]) -> None:
    first = runs[0]
    page.add("<h2>Side by side</h2>\n")
    told = [{**run.options, "format": run.format, "allocator": run.allocator,
             "requests": run.counts["requests"]} for run in runs]
    differing = [f"{name} ({', '.join(str(options[name]) for options in told)})"
                 for name in told[0] if len({str(options[name]) for options in told}) > 1]
    page.add(paragraph(
        "The runs were told the same." if not differing else
        f"What the runs were told differs in {'; '.join(differing)}.", "lead"))
    head = ["figure", first.name]
    for run in runs[1:]:
        head += [run.name, f"against {first.name}"]
    rows = []
    for title, of, words in _compared():
        row = [title, words(of(first))]
        for run in runs[1:]:
            row += [words(of(run)), difference(of(first), of(run))]
        rows.append(row)
    page.add(table(head, rows, name="differences"))
    page.add(paragraph("Counts are exact. Times of two runs were taken one after the other, so "
                        "the machine's drift is in their difference: look at the copy limits "
                        "before you believe one."))


# ---- all of it ----------------------------------------------------------------------------


def _add_machines(page: Page, machines: Sequence[Machine]) -> None:
    if machines:
        page.add("<h2>The machine</h2>\n", facts([m.name for m in machines], [
            ("Machine", [m.cpu for m in machines]),
            ("Processors", [f"{m.cpus_online:,}, {m.isa}" for m in machines]),
            ("Memory", [size_words(m.memory_bytes) for m in machines])], "machine"))


def make_page(inputs: Sequence[Replay | Bench | Machine]) -> str:
    """The page of these runs, as HTML."""
    runs = [i for i in inputs if isinstance(i, Replay)]
    benches = [i for i in inputs if isinstance(i, Bench)]
    machines = [i for i in inputs if isinstance(i, Machine)]
    page, plotter = Page(), Plotter(runs)
    title = "pagedkv: " + ", ".join(i.name for i in inputs if not isinstance(i, Machine))
    page.add(f"<h1>{escaped(title)}</h1>\n")
    # What happened stands in the first screen; the tables that it was made of come behind it.
    if runs:
        _add_lede(page, runs)
        _add_steps(page, plotter, runs)
        _add_pages(page, plotter, runs)
        _add_main_figures(page, runs)
        if len(runs) > 1:
            _add_comparison(page, runs)
        _add_told(page, runs)
    if benches:
        add_benches(page, plotter, benches)
    _add_machines(page, machines)
    # "</script" in a name would end the element.
    data = json.dumps(page.drawn, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{''.join(page.parts)}"
        f"<footer>pagedkv.report {escaped(__version__)}. At most {MARKS} marks a curve; what the "
        "plots show stands in this file as JSON, in the element "
        "<code>pagedkv-drawn</code>.</footer>\n"
        f'<script type="application/json" id="pagedkv-drawn">{data}</script>\n</body>\n</html>\n')
