"""Words, tables and the page that they are collected in."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ._figures import Panel

NOTHING = "–"


def escaped(value: object) -> str:
    return html.escape(str(value))


def count_words(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def number_words(value: float | None) -> str:
    """Three digits that mean something."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def percent_words(part: float | None, whole: float = 1) -> str:
    return NOTHING if part is None or whole <= 0 else f"{100 * part / whole:.1f} %"


def time_words(ns: float | None) -> str:
    if ns is None:
        return NOTHING
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= size:
            return f"{number_words(ns / size)} {unit}"
    return f"{number_words(ns)} ns"


def size_words(n: float) -> str:
    return f"{n / (1 << 30):.2f} GiB"


def difference(first: float | None, other: float | None) -> str:
    if first is None or other is None:
        return NOTHING
    if first == other:
        return "same"
    return f"{100 * (other - first) / first:+.1f} %" if first > 0 else "from 0"


def plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


# A title, a note beside it, and rows.
Section = tuple[str, str, Sequence[Sequence[str]]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]] = (), *, long: bool = False,
          name: str = "", over: Sequence[tuple[str, int]] = (),
          sections: Sequence[Section] = ()) -> str:
    """A table in a box of its own, which scrolls where the window is narrow. Cells are text.

    over: titles over the head, each of so many columns. sections: rows with titles above them.
    """
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in row)
    above = "".join(f"<th colspan={n}>{escaped(title)}</th>" for title, n in over)
    parts = []
    for title, note, found in [*sections, *([("", "", rows)] if rows else [])]:
        body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in found)
        if title:
            beside = f" <span>{escaped(note)}</span>" if note else ""
            body = (f"<tr class=section><th colspan={len(head)} scope=rowgroup>"
                    f"<div>{escaped(title)}{beside}</div></th></tr>\n{body}")
        parts.append(f"<tbody>{body}</tbody>")
    above = f"<tr class=over>{above}</tr>" if above else ""
    return (f'<div class="table{" long" if long else ""}" tabindex="0" role="region" '
            f'aria-label="{escaped(name)}"><table data-name="{escaped(name)}">'
            f"<thead>{above}<tr>{cells(head, 'th')}</tr></thead>\n"
            f"{''.join(parts)}</table></div>\n")


def facts(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], name: str) -> str:
    """Rows of a name and what it is in each run."""
    head = ""
    if len(columns) > 1:
        head = ("<thead><tr><th></th>" + "".join(f"<th>{escaped(c)}</th>" for c in columns)
                + "</tr></thead>")
    body = "".join(
        f"<tr><th>{escaped(title)}</th>" + "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
        + "</tr>\n" for title, cells in rows)
    return (f'<div class="table facts" tabindex="0" role="region" aria-label="{escaped(name)}">'
            f'<table data-name="{escaped(name)}">{head}<tbody>{body}</tbody></table></div>\n')


def paragraph(text: str, kind: str = "") -> str:
    """kind: "alarm" warns, "lead" stays with what follows it on paper, "run" is a line of such."""
    return f"<p{f' class={kind}' if kind else ''}>{escaped(text)}</p>\n"


class Page:
    """What is written so far, and what its plots show."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.drawn: list[Mapping[str, Any]] = []

    def add(self, *parts: str) -> None:
        self.parts.extend(parts)

    def add_panels(self, rows: Sequence[Sequence[Panel]]) -> None:
        """Panels of one run flow on, as many beside each other as fit; those of two stay apart."""
        if all(len(row) <= 1 for row in rows):
            rows = [[panel for row in rows for panel in row]]
        for row in rows:
            if row:
                self._add_row(row)

    def _add_row(self, panels: Sequence[Panel]) -> None:
        self.add('<div class="panels">\n')
        for panel in panels:
            svg = panel.svg.replace("<svg ", f'<svg aria-label="{escaped(panel.title)}" ', 1)
            note = f"<span>{escaped(panel.note)}</span>" if panel.note else ""
            self.add(f"<figure><figcaption>{escaped(panel.title)}{note}</figcaption>\n{svg}"
                     "</figure>\n")
            self.drawn.append({"title": panel.title, **panel.drawn})
        self.add("</div>\n")
