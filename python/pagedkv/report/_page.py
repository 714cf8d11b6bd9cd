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
    Plotter,
    curve_of,
    paired_ratios,
    per_step,
    points_a_mark,
    quartiles,
    rate_of,
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
        words.append("huge pages")
    words.append(options["device"] or options["backend"].upper())
    return ", ".join(words)


def _add_head(page: Page, runs: Sequence[Replay]) -> None:
    def row(title: str, of: Callable[[Replay], str]) -> tuple[str, list[str]]:
        return title, [of(run) for run in runs]
    rows = [
        row("Trace", lambda r: f"{r.options['trace']} ({r.format})"),
        row("Requests", lambda r: f"{r.counts['requests_finished']:,} of "
                                  f"{r.counts['requests']:,} finished"),
        row("Steps", lambda r: f"{r.counts['steps']:,}: {r.kinds['decode_only'].steps:,} decode "
                               f"only, {r.kinds['with_prefill'].steps:,} with prefill"),
        row("Tokens written", lambda r: f"{r.counts['tokens_written']:,}"),
        row("Read back", lambda r: "not checked (--verify off)" if not r.options["verify"] else
            f"{r.counts['verified_tokens']:,} tokens, {r.counts['mismatched_tokens']:,} differ"),
        row("Cache", lambda r: f"{r.options['num_pages']:,} pages of {r.options['page_size']} "
                               f"tokens, {plural(r.options['num_layers'], 'layer')} of "
                               f"{r.options['num_kv_heads']} KV heads x {r.options['head_dim']}, "
                               f"{r.options['cache_dtype']}"),
        row("A step at most", lambda r: f"{r.options['max_num_reqs']:,} requests, "
                                        f"{r.options['max_num_batched_tokens']:,} tokens"),
        row("Pages", lambda r: f"allocator {r.allocator}, prefix cache "
                               f"{r.options['prefix_cache']}, preempt {r.options['preempt']}"),
        row("Run with", _machine_words),
        row("Program", lambda r: f"pagedkv {r.options['version']}"),
    ]
    page.add(facts([run.name for run in runs], rows, "what was run"))
    for run in runs:
        wrong = {name: run.counts[name] for name in
                 ("mismatched_tokens", "poison_errors", "plan_errors", "pages_leaked")
                 if run.counts[name] > 0}
        if wrong:
            found = ", ".join(f"{name} {n:,}" for name, n in wrong.items())
            page.add(paragraph(f"{run.name}: the check found differences: {found}. Its figures "
                                "are those of a wrong run.", alarm=True))


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
            limit = run.copy_limit_bytes_per_s
            rows.append([
                f"{KIND_NAMES[kind]}, {way}", count_words(part.steps),
                number_words(part.slices[way] / part.steps),
                number_words(_median_of(run, f"slices_{way}", kind)),
                time_words(part.update_ns[way] / part.steps),
                time_words(_median_of(run, f"update_ns_{way}", kind)),
                _quartiles_of(run, f"update_ns_{way}", kind),
                NOTHING if rate is None else number_words(rate / 1e9),
                NOTHING if rate is None or not limit else number_words(rate / limit)])
    return rows


_MAIN_HEAD = ["steps, way", "steps", "slices", "median", "time", "median", "quartiles", "GB/s",
              "of limit"]


def _add_main_figures(page: Page, runs: Sequence[Replay]) -> None:
    page.add("<h2>The main figures</h2>\n", paragraph(
        "Every step was written three times, in turns: static visits all N columns of a padded "
        "plan, exact the n real ones, merged fewer after neighbouring pages were joined. Slices "
        "and times are averages over the steps of one kind, in which one long pause of the "
        "machine weighs as much as a thousand steps; medians and quartiles are over the points "
        "of the time series, as GB/s (read plus written) and the part of the copy limit are, "
        "but of a run without a series. Times are of the update alone."))
    for run in runs:
        if len(runs) > 1:
            page.add(f"<h3>{escaped(run.name)}</h3>\n")
        page.add(table(_MAIN_HEAD, _main_rows(run), name=f"main figures {run.name}"))
    page.add(paragraph(
        "Empty slices move no bytes: on a CPU a static step costs some nanoseconds a column more "
        "than an exact one, and no more. So the ratio of the slices is not a ratio of the times, "
        "and none of it is a speedup of an engine."))


def _add_slices(page: Page, plotter: Plotter, runs: Sequence[Replay]) -> None:
    with_series = [run for run in runs if run.series is not None]
    page.add("<h2>Slices a step</h2>\n")
    if not with_series:
        page.add(paragraph("The run has no time series (--series): the table above has the "
                            "averages of each kind of step."))
        return
    page.add(paragraph(_marks_words(with_series)))
    page.add_panels([plotter.over_run(title, "slices a step", [
        (run.name, way_curves(run, "slices", kind), {}) for run in with_series], may_be_log=True)
        for kind, title in ((None, "Slices, all steps"),
                            ("decode_only", "Slices, steps that only decode"),
                            ("with_prefill", "Slices, steps with prefill"))])
    page.add(paragraph(
        "A step that only decodes writes one token a request. Such slices have nothing to be "
        "joined with, so merged is exact there. The axis is logarithmic where the ways differ "
        "by more than its height could show."))
    for run in with_series:
        _add_untold(page, run)


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


def _add_times(page: Page, plotter: Plotter, runs: Sequence[Replay]) -> None:
    page.add("<h2>Update time of the three ways</h2>\n")
    with_series = [run for run in runs if run.series is not None]
    curves = [plotter.over_run(title, "µs a step", [
        (run.name, way_curves(run, "update_ns", kind, 1000), {}) for run in with_series],
        may_be_log=True)
        for kind, title in (("decode_only", "Time, steps that only decode"),
                            ("with_prefill", "Time, steps with prefill"))]
    panels = plotter.ratios(with_series)
    page.add_panels([*curves, panels])
    if panels:
        page.add(paragraph("Against exact: the median of the ratios, with bars from the first "
                            "to the third quartile, of updates of the same steps right after "
                            "each other."))
        page.add(table(["steps, way", "median", "quartiles", "points"], [
            [f"{run.name}: {KIND_NAMES[kind]}, {way}" if len(runs) > 1
             else f"{KIND_NAMES[kind]}, {way}",
             f"{q[1]:.3f}", f"{q[0]:.3f} to {q[2]:.3f}", count_words(len(values))]
            for run in with_series for kind in KINDS for way in ("static", "merged")
            if (values := paired_ratios(run, kind, way)) and (q := quartiles(values))],
            name="ratios"))
    page.add("<h3>Rates beside the copy limit of the run</h3>\n")
    page.add_panels([plotter.rates(runs)])
    page.add(paragraph(
        "The limit is the best plain contiguous copy of the machine, taken once before the first "
        "step. On a shared machine it drifts, and the new K/V of a step are fresh in the "
        "processor's cache, so small steps can lie over it. A bench takes limit and update side "
        "by side."))


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
                            "pages and evictions over time; their totals are below."))
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
    ("longest free run at its shortest", lambda r: count_words(r.counts["largest_extent_pages"])),
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

    rows: list[_Figure] = [(title, count(name), count_words) for title, name in (
        ("requests finished", "requests_finished"), ("steps", "steps"),
        ("tokens written", "tokens_written"), ("prompt tokens found", "prefix_hit_tokens"),
        ("tokens written again", "recomputed_tokens"), ("pages at the peak", "pages_peak"),
        ("pages evicted", "evictions"))]
    rows += [(f"slices, {way}", slices(way), count_words) for way in WAYS]
    rows += [(f"median time a step, {KIND_NAMES[kind]}, {way}", time(kind, way), time_words)
             for kind in KINDS for way in WAYS]
    rows.append(("planning, exact", lambda r: r.counts["plan_ns"], time_words))
    rows.append(("copy limit, GB/s", lambda r: None if r.copy_limit_bytes_per_s is None
                 else r.copy_limit_bytes_per_s / 1e9, number_words))
    rows.append(("of the limit, exact", lambda r: r.limit_fraction, number_words))
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
        f"What the runs were told differs in {'; '.join(differing)}."))
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
        page.add(facts([m.name for m in machines], [
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
    _add_machines(page, machines)
    if runs:
        _add_head(page, runs)
        _add_main_figures(page, runs)
        if len(runs) > 1:
            _add_comparison(page, runs)
        _add_slices(page, plotter, runs)
        _add_times(page, plotter, runs)
        _add_pages(page, plotter, runs)
    if benches:
        add_benches(page, plotter, benches)
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
