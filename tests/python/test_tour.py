"""docs/tour.md as a newcomer does it: every command in order, in a copy of this tree.

In the page
    ```sh                                     is run, all in one shell
    ```text                                   is what the block before it prints
    <!-- varies: REGEX --> before ```text     what of it differs from run to run
    <!-- file: PATH --> before ```c           is saved there
    <!-- from: PATH --> before ```python      is a part of that file
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tour.md").read_text()
BLOCK = re.compile(r"(?:^<!-- (?P<word>\w+): (?P<value>[^\n]*) -->\n)?"
                   r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    line: int
    kind: str
    text: str
    marks: dict[str, str]


def blocks() -> list[Block]:
    return [Block(PAGE.count("\n", 0, m.start("kind")) + 1, m["kind"], m["text"],
                  {m["word"]: m["value"]} if m["word"] else {}) for m in BLOCK.finditer(PAGE)]


def commands() -> Iterator[tuple[Block, Block]]:
    """Each block of commands with what it prints."""
    found = blocks()
    for block, following in zip(found, [*found[1:], Block(0, "", "", {})], strict=True):
        if block.kind == "sh":
            yield block, following if following.kind == "text" else Block(0, "text", "", {})


def script(folder: Path) -> str:
    """A shell script of the whole page; what the block at line n prints goes to folder/n."""
    parts = ["set -e\n"]
    for block in blocks():
        if block.kind == "sh":
            parts.append(f"{{\n{block.text}}} >{folder}/{block.line} 2>&1\n")
        elif "file" in block.marks:
            saved = folder / f"{block.line}.saved"
            saved.write_text(block.text)
            parts.append(f"cp {saved} {block.marks['file']}\n")
    return "".join(parts)


def comparable(text: str, varies: str) -> str:
    lines = (re.sub(" +", " ", line.rstrip()) for line in text.splitlines())
    return "\n".join(re.sub(varies, "~", line) if varies else line for line in lines)


def test_the_page_is_read() -> None:
    kinds = [block.kind for block in blocks()]
    assert len(kinds) == PAGE.count("```") // 2
    assert set(kinds) == {"sh", "text", "c", "python"}
    assert kinds.count("text") == sum(bool(shown.text) for _, shown in commands())
    for block in blocks():
        assert block.kind in ("sh", "text") or block.marks.keys() <= {"file", "from"}, block.line
        assert block.kind not in ("c", "python") or block.marks, f"tour.md:{block.line}: unmarked"
        if block.kind == "text":
            kept = comparable(block.text, block.marks.get("varies", ""))
            assert len(kept) > len(comparable(block.text, "")) / 2, f"tour.md:{block.line}"


@pytest.mark.parametrize("block", [b for b in blocks() if "from" in b.marks],
                         ids=lambda block: str(block.line))
def test_part_of_a_file(block: Block) -> None:
    assert block.text in (ROOT / block.marks["from"]).read_text(), f"tour.md:{block.line}"


def test_a_difference_is_seen() -> None:
    assert comparable("5 us\n 12  steps", r"\d+ us") == comparable("77 us\n 12 steps", r"\d+ us")
    assert comparable("5 us, 12 steps", r"\d+ us") != comparable("5 us, 13 steps", r"\d+ us")


def test_tour(tmp_path: Path) -> None:
    clone, printed = tmp_path / "pagedkv", tmp_path / "printed"
    printed.mkdir()
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns("build", ".git", "__pycache__"))
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "ARGS")}
    done = subprocess.run(
        ["bash", "-c", script(printed)], cwd=clone, stdin=subprocess.DEVNULL, timeout=1800,
        env={**environment, "PIP_QUIET": "3"})  # its warnings are of the machine
    for block, shown in commands():
        path = printed / str(block.line)
        assert path.exists(), f"tour.md:{block.line}: was not reached"
        varies, got = shown.marks.get("varies", ""), path.read_text()
        assert comparable(got, varies) == comparable(shown.text, varies), \
            f"tour.md:{block.line}: other output than the page shows:\n{got}"
    assert done.returncode == 0
