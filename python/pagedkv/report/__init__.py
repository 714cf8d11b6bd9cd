"""One page with plots from the JSON of ``pagedkv replay`` and ``pagedkv bench``::

    python -m pagedkv.report run.json [run2.json ...] -o report.html

The page is one file that needs no network and no script. docs/report.md says what is on it. The
plots need matplotlib: ``pip install 'pagedkv[report]'``.
"""

from __future__ import annotations

from ._read import Bench, InputError, Machine, Replay, Series, read

__all__ = ["Bench", "InputError", "Machine", "Replay", "Series", "read"]
