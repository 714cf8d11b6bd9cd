"""The plots, as SVG that takes its colours and its font from the page around it.

A panel is drawn once, as wide as a phone; the page puts as many beside each other as fit. So text
keeps its size on every screen and on paper.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ._read import KINDS, WAYS, Bench, BenchRow, Replay, Series

WIDTH_INCHES = 5.0
HEIGHT_INCHES = 3.3
_FONT_SIZE = 12.0
# A panel is some 300 pixels wide inside: more marks than this cover each other.
MARKS = 120

# Colours that stand for one of the page's: whoever shows the SVG puts a variable in their place.
COLOURS = {
    "ink": "#010101", "muted": "#010102", "grid": "#010103", "static": "#010104",
    "exact": "#010105", "merged": "#010106", "limit": "#010107", "paper": "#010108",
}
# Ways differ in more than colour: who sees none of it, or prints in grey, tells them apart.
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "static": {"linestyle": (0, (1, 1.2)), "marker": "^", "markersize": 3.2, "zorder": 2},
    "exact": {"linestyle": "-", "marker": "o", "markersize": 3.6, "zorder": 3},
    "merged": {"linestyle": (0, (4, 1.6)), "marker": "D", "markersize": 2.2, "zorder": 4},
}
_FRACTIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("limit_fraction", "of the copy limit", {"marker": "o", "markersize": 7,
                                             "color": COLOURS["exact"]}),
    ("pattern_fraction", "of a plain loop", {"marker": "D", "markersize": 5.5,
                                             "markerfacecolor": "none",
                                             "color": COLOURS["static"]}),
)
# Behind a number that a line would strike through.
_ON_PAPER: Mapping[str, Any] = {"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 0.8}
KIND_NAMES = {"decode_only": "decode only", "with_prefill": "with prefill"}

_RC: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "pagedkv", "text.parse_math": False,
    "font.size": _FONT_SIZE, "font.family": ["DejaVu Sans"], "axes.labelsize": _FONT_SIZE,
    "xtick.labelsize": _FONT_SIZE, "ytick.labelsize": _FONT_SIZE, "legend.fontsize": _FONT_SIZE,
    "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"], "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"], "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"], "grid.color": COLOURS["grid"], "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.5, "axes.grid": True, "grid.linewidth": 0.8,
}


@dataclass
class Panel:
    """One plot, and what is drawn in it: the page keeps that beside the picture."""

    title: str
    note: str
    svg: str
    drawn: Mapping[str, Any]


@dataclass
class Curve:
    """Marks of one name; `style` is a way's or that of pages."""

    name: str
    colour: str
    style: Mapping[str, Any]
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


# What a value is called on an axis.
Words = Callable[[float, object], str]


# ---- numbers ------------------------------------------------------------------------------


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 25th, 50th and 75th percentile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def per_step(series: Series, name: str, kind: str | None) -> list[float | None]:
    """A column over the steps, point by point; None where a point has no steps of the kind."""
    if kind is None:
        values, steps = list(series.columns[name]), list(series.columns["steps"])
    else:
        values, steps = series.of_kind(name, kind), series.told_apart(kind)
    return [value / n if n else None for value, n in zip(values, steps, strict=True)]


def marks(series: Series, values: Sequence[float | None], *,
          average: bool = False) -> tuple[list[float], list[float]]:
    """At most MARKS marks: where each group of points lies in the run, and its median.

    What happens in few steps has a median of 0 everywhere: of that the average.
    """
    group = max(1, math.ceil(len(values) / MARKS))
    x: list[float] = []
    y: list[float] = []
    first = 0
    for start in range(0, len(values), group):
        steps = sum(series.columns["steps"][start:start + group])
        there = [value for value in values[start:start + group] if value is not None]
        if there:
            x.append(first + steps / 2)
            y.append(fmean(there) if average else median(there))
        first += steps
    return x, y


def points_a_mark(series: Series) -> int:
    return max(1, math.ceil(len(series.columns["steps"]) / MARKS))


def short(value: float, _position: object = None) -> str:
    """A number for an axis: 950, 1.5k, 20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def short_time(us: float, _position: object = None) -> str:
    """Microseconds for an axis, each in the unit that fits it: 950 ns, 8 ms."""
    for size, unit in ((1e6, "s"), (1e3, "ms"), (1, "µs")):
        if abs(us) >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us * 1e3:.3g} ns" if us else "0"


# ---- SVG ----------------------------------------------------------------------------------


def _to_svg(figure: Figure, number: int) -> str:
    """The figure as SVG for inside a page: no size, no names of its own, the page's colours."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" role="img">', text,
                  count=1)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font: \1 var(--font)", text)
    # Many figures share one page, and a name of a shape may stand there only once.
    text = re.sub(r'\bid="', f'id="f{number}-', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#f{number}-', text)
    text = text.replace("url(#", f"url(#f{number}-")
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.strip()


class Plotter:
    """Draws panels and numbers them."""

    def __init__(self, runs: Sequence[Replay] = ()) -> None:
        self.n = 0
        self.last_step = max((run.counts["steps"] for run in runs if run.series), default=1)

    def panel(self, title: str, draw: Callable[[Figure, Axes], Mapping[str, Any]],
              height: float = HEIGHT_INCHES, note: str = "") -> Panel:
        self.n += 1
        with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
            figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
            drawn = draw(figure, figure.add_subplot())
            return Panel(title, note, _to_svg(figure, self.n), drawn)

    # ---- over the run ---------------------------------------------------------------------

    def over_run(self, what: str, label: str,
                 runs: Sequence[tuple[str, Sequence[Curve], Mapping[str, float]]], *,
                 may_be_log: bool = False, words: Words = short) -> list[Panel]:
        """A panel for each run, all with the same axes: its curves, and lines at given heights."""
        values = [y for _, curves, levels in runs
                  for y in (*(y for curve in curves for y in curve.y), *levels.values())]
        if not values:
            return []
        scale = _Scale(values, may_be_log, words)
        panels = []
        for name, curves, levels in runs:
            def draw(figure: Figure, axes: Axes, curves: Sequence[Curve] = curves,
                     levels: Mapping[str, float] = levels) -> Mapping[str, Any]:
                axes.set_xlim(0, self.last_step)
                scale.apply(axes)
                for level, y in levels.items():
                    axes.axhline(y, color=COLOURS["limit"], linewidth=1.2, zorder=1, gid=level)
                    axes.annotate(f"{level} {short(y)}", (1, y), (0, 3),
                                  xycoords=("axes fraction", "data"),
                                  textcoords="offset points", ha="right", color=COLOURS["limit"])
                for curve in curves:
                    _draw_curve(axes, curve)
                axes.set_xlabel("step")
                axes.set_ylabel(label)
                axes.xaxis.set_major_formatter(FuncFormatter(short))
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                if len(curves) > 1:
                    figure.legend(loc="outside upper left", ncols=len(curves), handlelength=1.8,
                                  columnspacing=1.2, borderpad=0, handletextpad=0.5)
                return {"curves": [{"name": c.name, "x": c.x, "y": c.y} for c in curves],
                        "levels": dict(levels)}
            panels.append(self.panel(f"{what}: {name}" if len(runs) > 1 else what, draw))
        return panels

    # ---- bars and dots --------------------------------------------------------------------

    def ratios(self, runs: Sequence[Replay]) -> list[Panel]:
        """Static and merged against exact in the same points: the median and the quartiles."""
        found = [(run, [row for kind in KINDS for row in _ratio_rows(run, kind)]) for run in runs]
        found = [(run, rows) for run, rows in found if rows]
        if not found:
            return []
        last = max(1.2, *(high for _, rows in found for _, _, (_, _, high) in rows)) * 1.05
        panels = []
        for run, rows in found:
            def draw(_figure: Figure, axes: Axes,
                     rows: Sequence[Any] = rows) -> Mapping[str, Any]:
                for at, (name, way, (low, middle, high)) in enumerate(rows):
                    axes.plot([low, high], [at, at], color=COLOURS[way], linewidth=3, alpha=0.5,
                              solid_capstyle="butt")
                    axes.plot([middle], [at], color=COLOURS[way],
                              marker=_STYLES[way]["marker"], markersize=8)
                    axes.annotate(f"{middle:.2f}", (middle, at), (0, 8), ha="center",
                                  textcoords="offset points", zorder=6, bbox=_ON_PAPER)
                axes.axvline(1, color=COLOURS["exact"], linewidth=1.2, zorder=1)
                axes.set_xlim(0, last)
                axes.set_ylim(len(rows) - 0.4, -0.8)
                axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
                axes.tick_params(axis="y", length=0)
                axes.grid(visible=False, axis="y")
                axes.set_xlabel("update time, exact = 1 (less is faster)")
                return {"ratios": {name: list(q) for name, _, q in rows}}
            panels.append(self.panel(_with_run("Time against exact", run, runs), draw,
                                     1.4 + 0.5 * len(rows), _pairs_words(run)))
        return panels

    def rates(self, runs: Sequence[Replay]) -> list[Panel]:
        """Bytes a second of each kind and way, with the copy limit drawn."""
        found = [(run, [(kind, way, rate) for kind in KINDS for way in WAYS
                        if (rate := rate_of(run, kind, way)) is not None]) for run in runs]
        last = max((value or 0 for run, rows in found for value in
                    (run.copy_limit_bytes_per_s, *(rate for _, _, rate in rows))),
                   default=0) * 1.18 / 1e9
        panels = []
        for run, rows in found:
            if not rows or last <= 0:
                continue

            def draw(_figure: Figure, axes: Axes, run: Replay = run,
                     rows: Sequence[tuple[str, str, float]] = rows) -> Mapping[str, Any]:
                # A gap between the two kinds.
                places = [at + 0.6 * (kind == KINDS[1]) for at, (kind, _, _) in enumerate(rows)]
                for at, (_, way, rate) in zip(places, rows, strict=True):
                    axes.barh(at, rate / 1e9, 0.72, color=COLOURS[way])
                    axes.annotate(f"{rate / 1e9:.1f}", (rate / 1e9, at), (4, 0), va="center",
                                  textcoords="offset points", zorder=6, bbox=_ON_PAPER)
                limit = run.copy_limit_bytes_per_s
                if limit:
                    axes.axvline(limit / 1e9, color=COLOURS["limit"], linewidth=1.6, zorder=5)
                    right = limit / 1e9 < last * 0.5
                    axes.annotate(f"copy limit {limit / 1e9:.1f}", (limit / 1e9, 1),
                                  (3 if right else -3, -2), xycoords=("data", "axes fraction"),
                                  textcoords="offset points", va="top",
                                  ha="left" if right else "right", color=COLOURS["limit"])
                axes.set_xlim(0, last)
                axes.set_ylim(places[-1] + 0.6, -1.3)
                axes.set_yticks(places, [f"{KIND_NAMES[kind]}, {way}" for kind, way, _ in rows])
                axes.tick_params(axis="y", length=0)
                axes.grid(visible=False, axis="y")
                axes.set_xlabel("GB/s, read plus written")
                return {"bytes_per_s": {f"{kind} {way}": rate for kind, way, rate in rows},
                        "copy_limit_bytes_per_s": limit}
            panels.append(self.panel(_with_run("Rates beside the copy limit", run, runs), draw,
                                     1.3 + 0.34 * len(rows)))
        return panels

    def fractions(self, title: str, note: str,
                  groups: Sequence[tuple[Bench, Sequence[BenchRow | None]]],
                  labels: Sequence[str]) -> list[Panel]:
        """How many times as fast as the limit and as the plain loop; a panel for each bench."""
        found = [row[name] for _, rows in groups for row in rows if row is not None
                 for name in ("limit_fraction", "pattern_fraction") if row[name] is not None]
        last = max(1.1, *found) * 1.08
        panels = []
        for bench, rows in groups:
            if not any(rows):
                continue

            def draw(figure: Figure, axes: Axes,
                     rows: Sequence[BenchRow | None] = rows) -> Mapping[str, Any]:
                for name, words, style in _FRACTIONS:
                    at = {i: row[name] for i, row in enumerate(rows)
                          if row is not None and row[name] is not None}
                    if at:
                        axes.plot(list(at.values()), list(at), linestyle="none", gid=name,
                                  markeredgewidth=1.5, clip_on=False, label=words, **style)
                axes.axvline(1, color=COLOURS["limit"], linewidth=1.6, zorder=1)
                axes.annotate("limit", (1, -0.65), (3, 0), textcoords="offset points",
                              va="center", color=COLOURS["limit"])
                axes.set_xlim(0, last)
                axes.set_ylim(len(rows) - 0.4, -1.1)
                axes.set_yticks(range(len(rows)), labels)
                axes.tick_params(axis="y", length=0)
                axes.set_xlabel("times as fast")
                figure.legend(loc="outside upper left", ncols=2, handlelength=1, borderpad=0,
                              handletextpad=0.4, columnspacing=1.2)
                return {name: {label: row[name] if row is not None else None
                               for label, row in zip(labels, rows, strict=True)}
                        for name, _, _ in _FRACTIONS}
            name = f"{title}: {bench.name}" if len(groups) > 1 else title
            panels.append(self.panel(name, draw, 1.4 + 0.32 * len(rows), note))
        return panels


class _Scale:
    """One y axis for all panels of a row: logarithmic only where a plain one would hide much."""

    def __init__(self, values: Iterable[float], may_be_log: bool, words: Words) -> None:
        positive = [value for value in values if value > 0]
        self.high = max(positive, default=1.0)
        self.low = min(positive, default=1.0)
        self.log = may_be_log and self.high / self.low > 30
        self.words = words

    def apply(self, axes: Axes) -> None:
        if self.log:
            axes.set_yscale("log")
            axes.set_ylim(10 ** (math.floor(math.log10(self.low) * 4) / 4), self.high * 1.6)
            axes.yaxis.set_major_locator(LogLocator(10))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, self.high * 1.12)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(self.words))


def _draw_curve(axes: Axes, curve: Curve) -> None:
    """Marks that follow each other are joined; over a hole in the run there is no line."""
    usual = median([b - a for a, b in zip(curve.x, curve.x[1:])]) if len(curve.x) > 1 else 0
    x: list[float] = []
    y: list[float] = []
    for i, at in enumerate(curve.x):
        if i > 0 and at - curve.x[i - 1] > 2.5 * usual:
            x.append(at)
            y.append(math.nan)
        x.append(at)
        y.append(curve.y[i])
    axes.plot(x, y, color=COLOURS[curve.colour], label=curve.name, gid=curve.name,
              markeredgewidth=0, **curve.style)


def _with_run(title: str, run: Replay, runs: Sequence[Replay]) -> str:
    return f"{title}: {run.name}" if len(runs) > 1 else title


def _pairs_words(run: Replay) -> str:
    """What is compared with what: a point of the series is the sum of some steps."""
    k = run.series.steps_per_point if run.series is not None else 1
    return "step by step" if k == 1 else f"point by point, each the sum of up to {k:,} steps"


def _ratio_rows(run: Replay, kind: str) -> list[tuple[str, str, tuple[float, float, float]]]:
    rows = []
    for way in ("static", "merged"):
        values = paired_ratios(run, kind, way)
        if values:
            rows.append((f"{KIND_NAMES[kind]}, {way}", way, quartiles(values)))
    return rows


def paired_ratios(run: Replay, kind: str, way: str) -> list[float]:
    """Update time of a way over that of exact, in each point that has steps of the kind."""
    if run.series is None:
        return []
    pairs = zip(run.series.of_kind(f"update_ns_{way}", kind),
                run.series.of_kind("update_ns_exact", kind), strict=True)
    return [a / b for a, b in pairs if a > 0 and b > 0]


def median_rate(run: Replay, kind: str, way: str) -> float | None:
    """Bytes a second, read plus written: the points' median; None where there is none."""
    tokens = sum(part.tokens for part in run.kinds.values())
    if run.series is None or tokens == 0:
        return None
    token_bytes = 2 * run.counts["bytes_written"] / tokens
    rates = [1e9 * token_bytes * n / ns for n, ns in
             zip(run.series.of_kind("tokens", kind), run.series.of_kind(f"update_ns_{way}", kind),
                 strict=True) if n > 0 and ns > 0]
    return median(rates) if rates else None


def rate_of(run: Replay, kind: str, way: str) -> float | None:
    """The median where the series has one, else the average over the run."""
    rate = median_rate(run, kind, way)
    return run.kinds[kind].bytes_per_s[way] if rate is None else rate


def way_curves(run: Replay, what: str, kind: str | None, unit: float = 1) -> list[Curve]:
    """static, exact and merged of `slices` or `update_ns` over the run."""
    curves = []
    for way in WAYS if run.series is not None else ():
        assert run.series is not None
        x, y = marks(run.series, per_step(run.series, f"{what}_{way}", kind))
        curves.append(Curve(way, way, _STYLES[way], x, [value / unit for value in y]))
    return [curve for curve in curves if curve.x]


def curve_of(run: Replay, column: str, name: str, style: str, *,
             average: bool = False) -> list[Curve]:
    """One column a step over the run, drawn like a way; nothing where the series lacks it."""
    if run.series is None or column not in run.series.columns:
        return []
    x, y = marks(run.series, per_step(run.series, column, None), average=average)
    return [Curve(name, style, {**_STYLES[style], "markersize": 0}, x, y)]
