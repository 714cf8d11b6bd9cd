"""The part of the page that shows benches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ._figures import Panel, Plotter
from ._html import (
    NOTHING,
    Page,
    Section,
    difference,
    escaped,
    facts,
    number_words,
    paragraph,
    plural,
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
    if value is None or value == "none":
        return ""
    if name == "huge_pages":
        return "huge pages" if value else "ordinary pages"
    counted = {"threads": "thread", "requests": "request", "pages": "page", "layers": "layer",
               "num_kv_heads": "head"}
    if name in counted and isinstance(value, int):
        return plural(value, counted[name])
    words = {"page_size": "page {}", "head_dim": "D {}", "tokens": "{:,} tok",
             "src_dtype": "from {}", "cache_dtype": "to {}", "scales": "scales {}"}
    return words.get(name, "{}").format(value)


def _shared_names(rows: Sequence[BenchRow]) -> list[str]:
    """What is the same in all rows that have it, told once; a case has it whole or not at all."""
    shared = []
    for name in _IDENTITY[1:]:
        by_case: dict[str, set[object]] = {}
        for row in rows:
            by_case.setdefault(row["case"], set()).add(row[name])
        values = set().union(*by_case.values()) - {None}
        if len(values) == 1 and all(len(found) == 1 for found in by_case.values()):
            shared.append(name)
    return shared


def _shared_words(rows: Sequence[BenchRow], names: Sequence[str]) -> str:
    words = (_label_of(name, next(row[name] for row in rows if row[name] is not None))
             for name in names)
    return ", ".join(filter(None, words))


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
    labels = [_row_words(row, used) or "all" for row in rows]
    return labels, ", ".join(shared)


def _row_words(row: BenchRow, names: Sequence[str]) -> str:
    return " ".join(filter(None, (_label_of(name, row[name]) for name in names)))


def _split(rows: list[BenchRow], names: Sequence[str]) -> list[list[BenchRow]]:
    """Groups that fit a panel, split by as few of the names as that takes."""
    if not names or len(rows) <= _ROWS_A_PANEL:
        return [rows]
    groups: dict[object, list[BenchRow]] = {}
    for row in rows:
        groups.setdefault(row[names[0]], []).append(row)
    return [part for group in groups.values() for part in _split(group, names[1:])]


_BENCH_COLUMNS: tuple[tuple[str, Callable[[BenchRow], str]], ...] = (
    ("of limit", lambda r: number_words(r["limit_fraction"])),
    ("of loop", lambda r: number_words(r["pattern_fraction"])),
    ("time", lambda r: time_words(r["ns_median"])),
    ("GB/s", lambda r: NOTHING if r["bytes_per_s"] is None
        else number_words(r["bytes_per_s"] / 1e9)),
    ("of memcpy", lambda r: number_words(r["memcpy_fraction"])),
    ("of NumPy", lambda r: number_words(r["numpy_fraction"])),
    ("of index_copy_", lambda r: number_words(r["index_copy_fraction"])),
    ("of a linked list", lambda r: number_words(r["linked_list_fraction"])),
    ("quartiles of the time", lambda r: NOTHING if r["ns_p25"] is None or r["ns_p75"] is None
        else f"{time_words(r['ns_p25'])} to {time_words(r['ns_p75'])}"),
)


def _sections(rows: Sequence[BenchRow], same: Sequence[str],
              columns: Sequence[Callable[[BenchRow], str]]) -> list[Section]:
    """Rows by case, each case headed by what its rows share, each row by what they do not."""
    by_case: dict[str, list[BenchRow]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    sections: list[Section] = []
    for case, found in by_case.items():
        names = [name for name in _IDENTITY[1:] if name not in same]
        alike = [name for name in names if len({row[name] for row in found}) == 1]
        note = ", ".join(filter(None, (_label_of(name, found[0][name]) for name in alike)))
        own = [name for name in names if name not in alike]
        sections.append((case, note, [
            [_row_words(row, own) or "all", *(of(row) for of in columns)] for row in found]))
    return sections


def add_benches(page: Page, plotter: Plotter, benches: Sequence[Bench]) -> None:
    """All of the page that benches make."""
    known: dict[tuple[object, ...], BenchRow] = {}
    for bench in benches:
        for row in bench.rows:
            known.setdefault(_key(row), row)
    every = list(known.values())
    same = _shared_names(every)
    page.add("<h2>Of the copy limit, by shape</h2>\n", paragraph(
        "Filled marks: how many times as fast as the best plain contiguous copy of as many bytes, "
        "the line at 1. Open marks: against the best plain loop over the same rows. Both were "
        "taken in the same rounds as the row, and are medians of the rounds' ratios. Right of the "
        "line pagedkv is faster.", "lead"))
    if shared := _shared_words(every, same):
        page.add(paragraph(f"All rows: {shared}.", "lead"))
    _add_bench_panels(page, plotter, benches, every, same)
    for bench in benches:
        name = f"all rows of {bench.name}"
        columns = [(title, of) for title, of in _BENCH_COLUMNS
                   if any(of(row) != NOTHING for row in bench.rows)]
        sections = _sections(bench.rows, same, [of for _, of in columns])
        page.add(f"<h3>{escaped(name[0].upper() + name[1:])}</h3>\n", table(
            ["row", *(title for title, _ in columns)], long=True, name=name, sections=sections))
    page.add(paragraph(
        "Time is the median of one call. A column \"of\" something says how many times as fast as "
        "that pagedkv was: medians of ratios inside a round. Page N is a page of N tokens; huge "
        f"and ordinary pages are those of the memory. {NOTHING} is not measured."))
    if len(benches) > 1:
        _add_bench_differences(page, benches, same)
    page.add("<h3>What was timed</h3>\n", _bench_facts(benches))


def _add_bench_panels(page: Page, plotter: Plotter, benches: Sequence[Bench],
                      rows: Sequence[BenchRow], same: Sequence[str]) -> None:
    by_case: dict[str, list[BenchRow]] = {}
    for row in rows:
        if row["limit_fraction"] is not None:
            by_case.setdefault(row["case"], []).append(row)
    if not by_case:
        page.add(paragraph("No row of these benches has a limit beside it."))
    panels: list[list[Panel]] = []
    for case, of_case in by_case.items():
        for group in _split(of_case, ("pattern", "page_size", "huge_pages", "plan", "layout")):
            patterns = {row["pattern"] for row in group}
            one = len(patterns) == 1
            labels, shared = _labels(group, ("case", *same, *(("pattern",) if one else ())))
            title = f"{case} {next(iter(patterns))}" if one else case
            found = [(bench, _find_rows(bench, group)) for bench in benches]
            panels.append(plotter.fractions(title, shared, found, labels))
    page.add_panels(panels)


def _find_rows(bench: Bench, wanted: Sequence[BenchRow]) -> list[BenchRow | None]:
    rows: dict[tuple[object, ...], BenchRow] = {}
    for row in bench.rows:
        rows.setdefault(_key(row), row)
    return [rows.get(_key(row)) for row in wanted]


def _add_bench_differences(page: Page, benches: Sequence[Bench], same: Sequence[str]) -> None:
    first = benches[0]
    head = ["row", first.name]
    columns = [lambda row: number_words(row["limit_fraction"])]
    for bench in benches[1:]:
        head += [bench.name, f"against {first.name}"]
        columns += _other_columns(bench)
    rows = [row for row in first.rows if row["limit_fraction"] is not None]
    page.add("<h3>Of the limit, side by side</h3>\n", table(
        head, long=True, name="bench differences", sections=_sections(rows, same, columns)))


def _other_columns(other: Bench) -> list[Callable[[BenchRow], str]]:
    """What another bench has where the first has a row, and how far they are apart."""
    def limit_of(row: BenchRow) -> float | None:
        found = _find_rows(other, [row])[0]
        return None if found is None else found["limit_fraction"]
    return [lambda row: number_words(limit_of(row)),
            lambda row: difference(row["limit_fraction"], limit_of(row))]
