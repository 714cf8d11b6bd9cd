"""Reads what the program wrote, and says in one line what is wrong with it.

Everything that the page shows is checked here, so what draws it can take it as it is.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pagedkv import __version__

WAYS = ("static", "exact", "merged")
KINDS = ("decode_only", "with_prefill")

_SERIES_VERSION = 1
_OLDEST = (0, 1)
# The program's largest outputs are some hundred KB; a device or a disk image is a mistake.
_LARGEST_FILE_BYTES = 64 << 20
_LARGEST_NUMBER = 1 << 63

_COUNTS = (
    "requests", "requests_finished", "steps", "tokens_written", "prompt_tokens", "bytes_written",
    "plan_ns", "plan_ns_merged", "verified_tokens", "mismatched_tokens", "poison_errors",
    "plan_errors", "pages_peak", "pages_leaked", "largest_extent_pages", "prefix_hit_tokens",
    "evictions", "pages_cached", "preemptions", "recomputed_tokens",
)
_OPTION_COUNTS = (
    "page_size", "num_pages", "max_num_reqs", "max_num_batched_tokens", "num_kv_heads",
    "head_dim", "num_layers", "threads",
)
_OPTION_TEXTS = ("dtype", "cache_dtype", "isa", "prefix_cache", "preempt", "arrivals", "backend")

_BY_WAY = tuple(f"{what}_{way}" for what in ("slices", "update_ns") for way in WAYS)
_COLUMNS = ("steps", "decode_only_steps", "tokens", *_BY_WAY, "running", "pages_used")
_DECODE_COLUMNS = tuple(f"decode_only_{name}" for name in ("tokens", *_BY_WAY))
_PAGE_COLUMNS = ("pages_shared", "pages_cached", "evictions")

# What they are, and whether some benches have no such field.
_BENCH_FIELDS: tuple[tuple[tuple[str, ...], type, bool], ...] = (
    (("impl", "case", "pattern", "plan", "layout", "source", "src_dtype", "cache_dtype", "isa"),
     str, False),
    (("page_size", "num_kv_heads", "head_dim", "tokens", "num_slices", "threads"), int, False),
    (("ns_median", "bytes_per_s", "limit_bytes_per_s", "limit_fraction", "pattern_fraction"),
     float, False),
    (("scales", "backend", "device", "launch"), str, True),
    (("requests", "pages", "layers", "rounds"), int, True),
    (("ns_p25", "ns_p75", "memcpy_fraction", "numpy_fraction", "index_copy_fraction",
      "linked_list_fraction"), float, True),
)

BenchRow = Mapping[str, Any]


class InputError(Exception):
    """A file that cannot be shown: which one, and why."""

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        super().__init__(f"{printable(os.fspath(path))}: {what}")


@dataclass(frozen=True)
class Kind:
    """Steps of one kind: those that only decode, or those with a part of a prompt."""

    steps: int
    tokens: int
    slices: Mapping[str, int]
    update_ns: Mapping[str, int]
    bytes_per_s: Mapping[str, float | None]


@dataclass(frozen=True)
class Series:
    """Sums over steps_per_point steps a point."""

    path: Path
    steps_per_point: int
    columns: Mapping[str, Sequence[int]]

    @property
    def splits_kinds(self) -> bool:
        """Has a point with steps of both kinds its sums over each?"""
        return _DECODE_COLUMNS[0] in self.columns

    def of_kind(self, name: str, kind: str) -> list[int]:
        """A column over the steps of one kind; 0 where a point cannot tell them apart."""
        columns = self.columns
        all_steps, decode_steps = columns["steps"], columns["decode_only_steps"]
        if self.splits_kinds or name == "steps":
            decode = columns[f"decode_only_{name}"]
        else:
            decode = [value if d == n else 0 for value, d, n in
                      zip(columns[name], decode_steps, all_steps, strict=True)]
        if kind == "decode_only":
            return list(decode)
        if self.splits_kinds or name == "steps":
            return [a - d for a, d in zip(columns[name], decode, strict=True)]
        return [value if d == 0 else 0 for value, d in
                zip(columns[name], decode_steps, strict=True)]

    def told_apart(self, kind: str) -> list[int]:
        """Steps of a kind in each point, those left out that a point cannot tell apart."""
        steps = self.of_kind("steps", kind)
        if self.splits_kinds:
            return steps
        return [n if n == m else 0 for n, m in zip(steps, self.columns["steps"], strict=True)]


@dataclass(frozen=True)
class Replay:
    """The JSON of `pagedkv replay`, and its series where it names one."""

    name: str
    counts: Mapping[str, int]
    options: Mapping[str, Any]
    kinds: Mapping[str, Kind]
    format: str
    allocator: str
    copy_limit_bytes_per_s: float | None
    series: Series | None

    def total(self, field: str, way: str) -> int:
        """Slices or update_ns of a way over all steps."""
        return sum(getattr(kind, field)[way] for kind in self.kinds.values())


@dataclass(frozen=True)
class Bench:
    """The JSON of `pagedkv bench`."""

    name: str
    rows: Sequence[BenchRow]


@dataclass(frozen=True)
class Machine:
    """What the page takes from the JSON of `pagedkv info`."""

    name: str
    cpu: str
    cpus_online: int
    memory_bytes: int
    isa: str


def printable(text: str) -> str:
    """Text that can stand in a page and in one line: no controls, no halves of characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


class _Fields:
    """The fields of one object; a wrong one is told with the object's file and place."""

    def __init__(self, path: Path, value: object, place: str = "") -> None:
        self.path = path
        self.place = place
        if not isinstance(value, dict):
            self.fail("an object is wanted")
        self.values: dict[str, Any] = value

    def fail(self, what: str) -> NoReturn:
        raise InputError(self.path, f"{self.place}: {what}" if self.place else what)

    def get(self, name: str) -> Any:
        if name not in self.values:
            self.fail(f'no field "{name}"; this is not the JSON of this version, '
                      f"or not all of it")
        return self.values[name]

    def count(self, name: str) -> int:
        value = self.get(name)
        if not _is_count(value):
            self.fail(f'"{name}" is not a count')
        return int(value)

    def optional(self, name: str, kind: type, *, absent_too: bool = False) -> Any:
        """A text, a count (int), a number (float) or a truth; None for null."""
        value = self.values.get(name) if absent_too else self.get(name)
        if value is None:
            return None
        if kind is str and isinstance(value, str):
            return printable(value)
        if kind is int and _is_count(value):
            return value
        if kind is float and _is_number(value):
            return float(value)
        if kind is bool and isinstance(value, bool):
            return value
        words = {str: "text", int: "a count", float: "a number", bool: "true or false"}
        self.fail(f'"{name}" is not {words[kind]}')

    def text(self, name: str) -> str:
        value = self.optional(name, str)
        if value is None:
            self.fail(f'"{name}" is not text')
        return str(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_NUMBER


def _is_number(value: object) -> bool:
    # A whole number can be too large for a float, which math.isfinite would make of it.
    return _is_count(value) or (
        isinstance(value, float) and math.isfinite(value) and 0 <= value < _LARGEST_NUMBER)


# ---- files --------------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(path, error.strerror or "cannot be read") from error
    except ValueError as error:  # a name that no file can have
        raise InputError(path, "no such file") from error
    if len(data) > _LARGEST_FILE_BYTES:
        raise InputError(path, f"more than {_LARGEST_FILE_BYTES >> 20} MiB; no JSON of pagedkv")
    if not data.strip():
        raise InputError(path, "the file is empty")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(path, "not JSON: not UTF-8 text") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise InputError(path, f"line {error.lineno}: something stands behind the end of the "
                                   "JSON") from error
        whole = text.strip()
        closing = {"{": "}", "[": "]"}.get(whole[0], whole[-1])
        if whole[-1] != closing or error.pos >= len(text.rstrip()):
            raise InputError(path, "cut short: the JSON ends in the middle") from error
        raise InputError(path, f"line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise InputError(path, "not JSON of pagedkv: nested too deeply") from error
    except ValueError as error:
        raise InputError(path, f"not JSON ({error})") from error


def _version_of(text: str) -> tuple[int, int] | None:
    match = re.match(r"(\d{1,6})\.(\d{1,6})(\.|\Z)", text, re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def _check_version(fields: _Fields) -> None:
    """A later program may mean something else by the same names."""
    text = fields.text("version")
    version, mine = _version_of(text), _version_of(__version__)
    if version is None:
        fields.fail(f'"version" is "{text}", which is none')
    if version < _OLDEST or mine is None or version > mine:
        fields.fail(f"written by pagedkv {text}; this report, of {__version__}, reads "
                    f"{'.'.join(map(str, _OLDEST))} to its own version")


# ---- series -------------------------------------------------------------------------------


def _find_series(run: Path, named: str) -> Path:
    """Beside the run first: the working directory is where the program ran, not we."""
    recorded = Path(named)
    for place in (run.parent / recorded, recorded, run.parent / recorded.name):
        try:
            if place.exists() and not place.is_dir():
                return place
        except (OSError, ValueError):
            continue
    raise InputError(run, f'its series "{printable(named)}" is no file beside it or in the '
                          "working directory")


def _read_series(path: Path) -> Series:
    top = _Fields(path, _load(path))
    if "columns" not in top.values:
        top.fail("not the series of a replay")
    version = top.get("version")
    if version != _SERIES_VERSION or isinstance(version, bool):
        top.fail(f"a series of version {printable(json.dumps(version))[:40]}; this report reads "
                 f"version {_SERIES_VERSION}")
    steps_per_point = top.count("steps_per_point")
    table = _Fields(path, top.get("columns"), "columns")
    names = [*_COLUMNS, *(name for name in (*_DECODE_COLUMNS, *_PAGE_COLUMNS)
                          if name in table.values)]
    if any(name in names for name in _DECODE_COLUMNS):
        names.extend(name for name in _DECODE_COLUMNS if name not in names)
    columns: dict[str, list[int]] = {}
    for name in names:
        values = table.get(name)
        if not isinstance(values, list) or not all(map(_is_count, values)):
            table.fail(f'"{name}" is not an array of counts')
        columns[name] = values
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        table.fail("they have different lengths: cut short")
    if min(columns["steps"], default=0) < 1 or steps_per_point < 1:
        table.fail("a point without steps")
    # Points hold more than a step only when there are many: never more than all steps.
    for steps in columns["steps"]:
        if steps > steps_per_point:
            table.fail(f"a point of {steps} steps, where {steps_per_point} are the most")
    if steps_per_point > sum(columns["steps"]):
        top.fail(f'"steps_per_point" is {steps_per_point}, more than all steps')
    series = Series(path, steps_per_point, columns)
    for name in ("steps", *_DECODE_COLUMNS):
        whole = name.removeprefix("decode_only_")
        part = columns.get("decode_only_steps" if name == "steps" else name, [])
        if any(d > a for d, a in zip(part, columns[whole])):
            table.fail(f'"decode_only_{whole}" is more than "{whole}"')
    return series


def _check_most(series: Series, num_pages: int, max_num_reqs: int) -> None:
    """No step has more pages than the pool or more requests than it may."""
    columns = series.columns
    for name, most, what in (("pages_used", num_pages, '"num_pages"'),
                             ("pages_cached", num_pages, '"num_pages"'),
                             ("running", max_num_reqs, '"max_num_reqs"')):
        for value, steps in zip(columns.get(name, ()), columns["steps"]):
            if value > most * steps:
                raise InputError(series.path, f'columns: "{name}" is {value} in {steps} steps, '
                                              f"more than the run's {what}, {most}")
    if any(s > u for s, u in zip(columns.get("pages_shared", ()), columns["pages_used"])):
        raise InputError(series.path, 'columns: "pages_shared" is more than "pages_used"')


def _check_series(series: Series, counts: Mapping[str, int], kinds: Mapping[str, Kind]) -> None:
    """A series that was cut, or is another run's, does not add up to the run's counts."""
    both = kinds.values()
    wanted = {"steps": counts["steps"], "decode_only_steps": kinds["decode_only"].steps,
              "tokens": sum(kind.tokens for kind in both)}
    for way in WAYS:
        wanted[f"slices_{way}"] = sum(kind.slices[way] for kind in both)
        wanted[f"update_ns_{way}"] = sum(kind.update_ns[way] for kind in both)
    if series.splits_kinds:
        decode = kinds["decode_only"]
        wanted["decode_only_tokens"] = decode.tokens
        for way in WAYS:
            wanted[f"decode_only_slices_{way}"] = decode.slices[way]
            wanted[f"decode_only_update_ns_{way}"] = decode.update_ns[way]
    if "evictions" in series.columns:
        wanted["evictions"] = counts["evictions"]
    for name, total in wanted.items():
        found = sum(series.columns[name])
        if found != total:
            raise InputError(series.path, f'not the whole series of this run: "{name}" adds up '
                                          f"to {found}, the run has {total}")


# ---- the program's outputs ----------------------------------------------------------------


def _read_kind(path: Path, value: object, name: str) -> Kind:
    fields = _Fields(path, value, name)
    return Kind(
        fields.count("steps"), fields.count("tokens_written"),
        {way: fields.count(f"slices_{way}") for way in WAYS},
        {way: fields.count(f"update_ns_{way}") for way in WAYS},
        {way: fields.optional(f"update_bytes_per_s_{way}", float) for way in WAYS})


def _read_replay(path: Path, name: str, value: object) -> Replay:
    fields = _Fields(path, value)
    options = _Fields(path, fields.get("options"), "options")
    _check_version(options)
    counts = {field: fields.count(field) for field in _COUNTS}
    if counts["steps"] == 0:
        fields.fail("a run with no steps: there is nothing to show")
    for field in ("pages_peak", "pages_cached", "largest_extent_pages"):
        if counts[field] > options.count("num_pages"):
            fields.fail(f'"{field}" is more than "num_pages"')
    kinds = {kind: _read_kind(path, fields.get(kind), kind) for kind in KINDS}
    parts = {"steps": [kind.steps for kind in kinds.values()]}
    for field in _BY_WAY:
        what, way = field.rsplit("_", 1)
        parts[field] = [getattr(kind, what)[way] for kind in kinds.values()]
    for field, values in parts.items():
        if sum(values) != fields.count(field):
            fields.fail(f'"{field}" is not the sum of its two kinds of steps')
    trace = options.optional("trace", str)
    series = None
    if fields.get("series") is not None:
        series = _read_series(_find_series(path, str(fields.optional("series", str))))
        _check_series(series, counts, kinds)
        _check_most(series, options.count("num_pages"), options.count("max_num_reqs"))
    return Replay(
        name, counts,
        {"trace": Path(trace).name if trace else "synthetic chat",
         **{option: options.count(option) for option in _OPTION_COUNTS},
         **{option: options.text(option) for option in _OPTION_TEXTS},
         "device": options.optional("device", str, absent_too=True),
         "huge_pages": options.optional("huge_pages", bool),
         "verify": options.optional("verify", bool), "version": options.text("version")},
        kinds, fields.text("format"), fields.text("allocator"),
        fields.optional("copy_limit_bytes_per_s", float),
        series)


def _read_bench(path: Path, name: str, values: list[object]) -> Bench:
    if not values:
        raise InputError(path, "no rows: nothing was timed")
    rows: list[BenchRow] = []
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict) or "impl" not in value or "case" not in value:
            raise InputError(path, f"row {number}: not a row of pagedkv bench")
        fields = _Fields(path, value, f"row {number}")
        row: dict[str, Any] = {"huge_pages": fields.optional("huge_pages", bool)}
        for names, kind, extra in _BENCH_FIELDS:
            row.update({field: fields.optional(field, kind, absent_too=extra) for field in names})
        for needed in ("impl", "case", "ns_median"):
            if row[needed] is None:
                fields.fail(f'"{needed}" is null')
        rows.append(row)
    mine = [row for row in rows if row["impl"] == "pagedkv"]
    if not mine:
        raise InputError(path, "no row of pagedkv itself")
    return Bench(name, mine)


def _read_machine(path: Path, name: str, value: object) -> Machine:
    fields = _Fields(path, value)
    _check_version(fields)
    return Machine(name, fields.text("cpu"), fields.count("cpus_online"),
                   fields.count("memory_bytes"), fields.text("isa"))


def read(path: str | os.PathLike[str], name: str | None = None) -> Replay | Bench | Machine:
    """The JSON of `pagedkv replay`, `bench` or `info`, checked; InputError if it is none.

    name is what the page calls it: the file's name if not given.
    """
    place = Path(path)
    value = _load(place)
    name = printable(name if name is not None else place.stem)
    if isinstance(value, list):
        return _read_bench(place, name, value)
    if isinstance(value, dict):
        if "columns" in value and "steps_per_point" in value:
            raise InputError(path, "a series alone; name the JSON of its run, which names it")
        if "options" in value and "decode_only" in value:
            return _read_replay(place, name, value)
        if "isa_usable" in value:
            return _read_machine(place, name, value)
    raise InputError(path, "not the JSON of pagedkv replay, bench or info")
