#!/usr/bin/python3
"""A browser with chromium's command line, as far as the tests of the report need it.

It is the system's chromium.  Ubuntu has that only as a snap, which wants a running snapd and
does not see the files in /tmp; there the engine in QtWebEngine, a plain package, does the same
work.  The system's Python runs this, for apt-get installs Qt's bindings there."""

from __future__ import annotations

import os
import shutil
import sys


def chromium() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None and "/snap/" not in path:
            with open(path, "rb") as program:
                if b"/snap/bin/" not in program.read(4096):  # Ubuntu's script starts the snap
                    return path
    return None


def qt(arguments: list[str]) -> int:
    try:
        from PyQt6.QtCore import QUrl
        from PyQt6.QtWebEngineCore import QWebEnginePage
        from PyQt6.QtWidgets import QApplication
    except ImportError as error:
        print(f"no chromium, no QtWebEngine ({error}): `scripts/install-deps test` installs one",
              file=sys.stderr)
        return 1
    if arguments == ["--version"]:
        return 0
    *options, url = arguments
    print_to = "--print-to-pdf="
    paper = next((o.removeprefix(print_to) for o in options if o.startswith(print_to)), None)
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = " ".join(
        o for o in options if not o.startswith(print_to) and o != "--dump-dom")
    app = QApplication(sys.argv[:1])
    page = QWebEnginePage()

    def dump(dom: str) -> None:
        print(dom)
        app.exit(0)

    def loaded(ok: bool) -> None:
        if not ok:
            app.exit(1)
        elif paper is not None:
            page.printToPdf(paper)
        else:
            page.toHtml(dump)

    page.loadFinished.connect(loaded)
    page.pdfPrintingFinished.connect(lambda _path, ok: app.exit(0 if ok else 1))
    page.load(QUrl(url))
    return int(app.exec())


if __name__ == "__main__":
    found = chromium()
    if found is not None:
        os.execv(found, [found, *sys.argv[1:]])
    sys.exit(qt(sys.argv[1:]))
