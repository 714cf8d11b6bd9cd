"""Runs the examples of README.md: readme.py README CC INCLUDE_DIR LIBRARY.

An example is a ```c block behind a line `<!-- run -->`.  It must compile without a warning
and exit with 0.  Where the next block is ```text, that is what it prints.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- run -->\s*\Z")


def examples(text):
    """(line, code, expected output or None) of each marked block."""
    blocks = list(BLOCK.finditer(text))
    for i, block in enumerate(blocks):
        if block[1] != "c" or not MARK.search(text, 0, block.start()):
            continue
        is_text = i + 1 < len(blocks) and blocks[i + 1][1] == "text"
        line = text.count("\n", 0, block.start()) + 1
        yield line, block[2], blocks[i + 1][2] if is_text else None


def run(code, expected, compiler, include, library, folder):
    """What is wrong with this example, or None."""
    source, program = Path(folder, "example.c"), Path(folder, "example")
    source.write_text(code)
    folder_of_library = os.path.dirname(os.path.abspath(library))
    command = [compiler, "-std=c99", "-Wall", "-Werror", f"-I{include}", str(source), library,
               f"-Wl,-rpath,{folder_of_library}", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        return built.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    if ran.returncode != 0:
        return f"exit status {ran.returncode}\n{ran.stderr}"
    if expected is not None and ran.stdout != expected:
        return f"printed\n{ran.stdout}but the text says\n{expected}"
    return None


def main():
    readme, compiler, include, library = sys.argv[1:]
    count = 0
    wrong = 0
    for line, code, expected in examples(Path(readme).read_text()):
        with tempfile.TemporaryDirectory() as folder:
            problem = run(code, expected, compiler, include, library, folder)
        count += 1
        wrong += problem is not None
        print(f"{Path(readme).name}:{line}: {problem or 'ok'}")
    if count == 0:
        print(f"{readme}: no example is marked with <!-- run -->")
    return 1 if wrong or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
