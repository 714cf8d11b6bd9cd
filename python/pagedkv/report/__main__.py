"""`python -m pagedkv.report`: exit status 0, or 2 with one line that says what is wrong."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from ._read import InputError, Replay, printable, read

_PROGRAM = "pagedkv.report"


def _fail(what: str) -> int:
    print(f"{_PROGRAM}: {what}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_fail(f"{printable(message)} (--help says how)"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog=f"python -m {_PROGRAM}", allow_abbrev=False,
        description="One HTML page with plots from the JSON of pagedkv replay (its series is "
                    "found by its name, beside the run or in the working directory) and pagedkv "
                    "bench. Two or more are shown side by side. The JSON of pagedkv info adds the "
                    "machine's name.",
        epilog="Exit status: 0, or 2 with one line on standard error and no page.")
    parser.add_argument("inputs", nargs="+", metavar="FILE.json")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.html",
                        help="where the page goes; - for standard output")
    return parser.parse_args(arguments)


def _names(paths: Sequence[str]) -> list[str]:
    """What each file is called on the page: the shortest end of its path that is its own."""
    stems = [Path(path).stem for path in paths]
    names = []
    for i, path in enumerate(paths):
        name = stems[i]
        if stems.count(name) > 1:
            folder = Path(path).resolve().parent.name
            name = f"{folder}/{name}"
        while name in names:
            name += "'"
        names.append(name)
    return names


def _same(output: str, path: str | os.PathLike[str]) -> bool:
    """Are they one file, by whatever names or links?"""
    try:
        return os.path.samefile(output, path)
    except (OSError, ValueError):  # one of them is not there
        return False


def _what_is_lost(output: str, inputs: Iterable[str], found: Iterable[object]) -> str | None:
    """The page must never take the place of what it was made of."""
    if output == "-":
        return None
    if any(_same(output, path) for path in inputs):
        return "it is an input, and would be replaced"
    for one in found:
        if isinstance(one, Replay) and one.series is not None and _same(output, one.series.path):
            return f"it is the series of {one.name}, and would be replaced"
    return None


def _write(output: str, page: str) -> None:
    """Beside its place and renamed: what was there stays until the page is whole."""
    place = Path(output).resolve()
    if place.exists() and not place.is_file():  # a device or a pipe
        place.write_text(page, encoding="utf-8")
        return
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(page)
        part.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return _fail("the plots need matplotlib: pip install 'pagedkv[report]'")
    from ._page import make_page

    try:
        found = [read(path, name) for path, name in
                 zip(options.inputs, _names(options.inputs), strict=True)]
        if lost := _what_is_lost(options.output, options.inputs, found):
            return _fail(f"{printable(options.output)}: {lost}")
        page = make_page(found)
    except InputError as error:
        return _fail(str(error))
    try:
        if options.output == "-":
            sys.stdout.buffer.write(page.encode())
            sys.stdout.buffer.flush()
        else:
            _write(options.output, page)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _fail(f"{printable(options.output)}: {what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
