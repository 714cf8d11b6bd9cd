"""The shared library exports just the names of symbols.txt: symbols.py NM LIBRARY."""

import subprocess
import sys
from pathlib import Path

VERSION = "PAGEDKV_0"


def main():
    nm, library = sys.argv[1:]
    expected = set(Path(__file__).with_name("symbols.txt").read_text().split())
    listing = subprocess.run(
        [nm, "-D", "--defined-only", "--format=posix", library],
        capture_output=True, text=True, check=True,
    ).stdout
    found = {}
    for line in listing.splitlines():
        name, kind = line.split()[:2]
        name, _, version = name.partition("@")
        if kind != "A":  # the version's own name
            found[name] = version.lstrip("@")
    for name in sorted(found.keys() - expected):
        print(f"exported, but not in symbols.txt: {name}")
    for name in sorted(expected - found.keys()):
        print(f"in symbols.txt, but not exported: {name}")
    for name, version in sorted(found.items()):
        if version != VERSION:
            print(f"{name} has version {version or 'none'}, expected {VERSION}")
    same = found.keys() == expected and set(found.values()) <= {VERSION}
    print(f"{len(found)} symbols, {len(expected)} expected")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
