"""The part of the page that shows benches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ._figures import Panel, Plotter
from ._html import (
    NOTHING,
    Page,
    difference,
    escaped,
    facts,
    number_words,
    paragraph,
    table,
    time_words,
)
from ._read import Bench, BenchRow

# A panel with more rows is too tall for a screen.
_ROWS_A_PANEL = 18

# What tells rows of a bench apart, in the order in which labels name it.
_IDENTITY = ("case", "pattern", "backend", "page_size", "plan", "tokens", "pages", "requests",
             "layout", "source", "threads", "huge_pages", "num_kv_heads", "head_dim", "src_dtype",
             "cache_dtype", "scales", "layers", "isa", "launch", "device")


def _bench_facts(benches: Sequence[Bench]) -> str:
    def values(bench: Bench, name: str) -> str:
        found = {row[name] for row in bench.rows if row[name] is not None}
        return ", ".join(map(str, sorted(found))) or NOTHING
    return facts([bench.name for bench in benches], [
        ("Bench rows", [f"{len(bench.rows):,} of pagedkv" for bench in benches]),
        ("Cases", [values(bench, "case") for bench in benches]),
        ("Element types", [values(bench, "cache_dtype") for bench in benches]),
        ("Instruction set", [values(bench, "isa") for bench in benches]),
        ("Threads", [values(bench, "threads") for bench in benches]),
        ("KV heads", [values(bench, "num_kv_heads") for bench in benches]),
        ("Head size", [values(bench, "head_dim") for bench in benches]),
        ("Device", [values(bench, "device") if values(bench, "device") != NOTHING else "CPU"
                    for bench in benches])], "benches")


def _key(row: BenchRow) -> tuple[object, ...]:
    return tuple(row[name] for name in _IDENTITY)


def _label_of(name: str, value: object) -> str:
    if value is None or (name, value) == ("scales", "none"):
        return ""
    if name == "huge_pages":
        return "huge" if value else "small"
    words = {"page_size": "page {}", "threads": "{} thr", "requests": "{} req",
             "pages": "{} pages", "num_kv_heads": "{} heads", "head_dim": "D {}",
             "layers": "{} layers", "tokens": "{} tok"}
    return words.get(name, "{}").format(value)


def _labels(rows: Sequence[BenchRow], skip: Sequence[str]) -> tuple[list[str], str]:
    """The shortest words that tell the rows apart, and those that they share."""
    shared: list[str] = []
    used: list[str] = []
    told = 1
    for name in _IDENTITY:
        values = {row[name] for row in rows}
        if name in skip:
            continue
        if len(values) == 1:
            word = _label_of(name, next(iter(values)))
            shared += [word] if word else []
            continue
        now = len({tuple(row[n] for n in (*used, name)) for row in rows})
        if now > told:
            used.append(name)
            told = now
    labels = [" ".join(filter(None, (_label_of(name, row[name]) for name in used))) or "all"
              for row in rows]
    return labels, ", ".join(shared)


def _split(rows: list[BenchRow], names: Sequence[str]) -> list[list[BenchRow]]:
    """Groups that fit a panel, split by as few of the names as that takes."""
    if not names or len(rows) <= _ROWS_A_PANEL:
        return [rows]
    groups: dict[object, list[BenchRow]] = {}
    for row in rows:
        groups.setdefault(row[names[0]], []).append(row)
    return [part for group in groups.values() for part in _split(group, names[1:])]


_BENCH_COLUMNS: tuple[tuple[str, Callable[[BenchRow], str]], ...] = (
    ("time", lambda r: time_words(r["ns_median"])),
    ("quartiles", lambda r: NOTHING if r["ns_p25"] is None or r["ns_p75"] is None
        else f"{time_words(r['ns_p25'])} to {time_words(r['ns_p75'])}"),
    ("GB/s", lambda r: NOTHING if r["bytes_per_s"] is None
        else number_words(r["bytes_per_s"] / 1e9)),
    ("limit", lambda r: number_words(r["limit_fraction"])),
    ("loop", lambda r: number_words(r["pattern_fraction"])),
    ("memcpy", lambda r: number_words(r["memcpy_fraction"])),
    ("NumPy", lambda r: number_words(r["numpy_fraction"])),
    ("index_copy_", lambda r: number_words(r["index_copy_fraction"])),
    ("list", lambda r: number_words(r["linked_list_fraction"])),
)


def _row_words(row: BenchRow) -> str:
    return " ".join(filter(None, (_label_of(name, row[name]) for name in _IDENTITY[1:]
                                  if name not in ("num_kv_heads", "head_dim", "device"))))


def add_benches(page: Page, plotter: Plotter, benches: Sequence[Bench]) -> None:
    """All of the page that benches make."""
    page.add("<h2>Benches</h2>\n", _bench_facts(benches))
    page.add("<h2>Of the copy limit, by shape</h2>\n", paragraph(
        "Filled marks: how many times as fast as the best plain contiguous copy of as many bytes, "
        "the line at 1. Open marks: against the best plain loop over the same rows. Both were "
        "taken in the same rounds as the row, and are medians of the rounds' ratios. Right of the "
        "line pagedkv is faster."))
    known: dict[tuple[object, ...], BenchRow] = {}
    for bench in benches:
        for row in bench.rows:
            known.setdefault(_key(row), row)
    drawn = [row for row in known.values() if row["limit_fraction"] is not None]
    # What all rows share stands above, once.
    same = [name for name in _IDENTITY if len({row[name] for row in drawn}) == 1]
    by_case: dict[str, list[BenchRow]] = {}
    for row in drawn:
        by_case.setdefault(row["case"], []).append(row)
    if not by_case:
        page.add(paragraph("No row of these benches has a limit beside it."))
    for case, rows in by_case.items():
        page.add(f"<h3>{escaped(case)}</h3>\n")
        panels: list[list[Panel]] = []
        for group in _split(rows, ("pattern", "page_size", "huge_pages", "plan", "layout")):
            patterns = {row["pattern"] for row in group}
            one = len(patterns) == 1
            labels, shared = _labels(group, ("case", *same, *(("pattern",) if one else ())))
            title = f"{case} {next(iter(patterns))}" if one else case
            found = [(bench, _find_rows(bench, group)) for bench in benches]
            panels.append(plotter.fractions(title, shared, found, labels))
        page.add_panels(panels)
    for bench in benches:
        name = f"all rows of {bench.name}"
        page.add(f"<h3>{escaped(name[0].upper() + name[1:])}</h3>\n", table(
            ["case", "row", *(title for title, _ in _BENCH_COLUMNS)],
            [[str(row["case"]), _row_words(row), *(of(row) for _, of in _BENCH_COLUMNS)]
             for row in bench.rows],
            long=True, name=name, text_columns=2))
    page.add(paragraph(
        "Time is the median of one call. The last columns say how many times as fast as each "
        f"pagedkv was: medians of ratios inside a round; {NOTHING} is not measured."))
    if len(benches) > 1:
        _add_bench_differences(page, benches)


def _find_rows(bench: Bench, wanted: Sequence[BenchRow]) -> list[BenchRow | None]:
    rows: dict[tuple[object, ...], BenchRow] = {}
    for row in bench.rows:
        rows.setdefault(_key(row), row)
    return [rows.get(_key(row)) for row in wanted]


def _add_bench_differences(page: Page, benches: Sequence[Bench]) -> None:
    first = benches[0]
    head = ["case", "row", first.name]
    for bench in benches[1:]:
        head += [bench.name, f"against {first.name}"]
    rows = [row for row in first.rows if row["limit_fraction"] is not None]
    others = [_find_rows(bench, rows) for bench in benches[1:]]
    cells_of = []
    for i, row in enumerate(rows):
        cells = [row["case"], _row_words(row), number_words(row["limit_fraction"])]
        for found in others:
            other = found[i]
            value = other["limit_fraction"] if other is not None else None
            cells += [number_words(value), difference(row["limit_fraction"], value)]
        cells_of.append(cells)
    page.add("<h3>Of the limit, side by side</h3>\n",
             table(head, cells_of, long=True, name="bench differences", text_columns=2))
