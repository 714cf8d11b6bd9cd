"""What the documents and examples/ show is what the programs print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"<!-- run -->\n```python\n(?P<code>.*?)```\n+```text\n(?P<output>.*?)```", re.DOTALL)

EXAMPLES = {
    "numpy_update.py": """\
slot 1600 <- row  0, 10 tokens
slot 3210 <- row 10, 30 tokens
read back: the same
RangeError: slice 0: kv_cache_start=4093 + slice_len=40 must be less or equal to \
kv_cache_token_num=4096
""",
    "torch_model.py": """\
43 tokens, 0 of them found, on pages [0, 1, 2, 3]
42 tokens, 32 of them found, on pages [0, 1, 4, 5]
5 tokens, 0 of them found, on pages [6, 7]
the same tokens: True
""",
    "torch_update.py": """\
slots 1600 and 3210: True True
compiled: the same
""",
    "jax_update.py": """\
step 0: 40 tokens in 4 slices
step 1: 2 tokens in 2 slices
step 2: 2 tokens in 2 slices
step 3: 2 tokens in 2 slices
46 slots written, 1 program compiled, the cache stayed where it was
""",
}


def blocks() -> list[tuple[str, str, str]]:
    found = []
    for page in (ROOT / "README.md", ROOT / "docs" / "python.md", ROOT / "docs" / "engines.md"):
        for match in BLOCK.finditer(page.read_text()):
            name = f"{page.name}:{page.read_text()[:match.start()].count(chr(10)) + 1}"
            found.append((name, match["code"], match["output"]))
    return found


def run(*arguments: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_of_the_library_exist() -> None:
    places = ("include/**/*.h", "src/**/*.[ch]", "CMakeLists.txt")
    code = "".join(path.read_text() for place in places for path in ROOT.glob(place))
    known = set(re.findall(r"\w+", code))
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        named = set(re.findall(r"\b(?:pkv|PKV)_\w+", page.read_text()))
        assert named <= known, f"{page.name}: {sorted(named - known)}"


def test_every_framework_is_shown() -> None:
    code = "".join(code for _, code, _ in blocks())
    assert all(f"import {name}" in code for name in ("numpy", "torch", "jax"))


@pytest.mark.parametrize(("name", "code", "output"), blocks(), ids=[b[0] for b in blocks()])
def test_document(name: str, code: str, output: str) -> None:
    assert run("-c", code) == output, name


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "examples").glob("*.py")))
def test_example(name: str) -> None:
    assert run(str(ROOT / "examples" / name)) == EXAMPLES[name]
