"""Look at the built pages in a browser: pictures, errors, requests.

    python book/_tools/look.py OUT [--html _build/html] [--pages a.html b.html]

Writes a picture of every page to OUT, wide and as narrow as a telephone, light
and dark, and prints what the browser complained about, every request that did
not go to the pages themselves, formulas that were not set, and pages wider than
the window. The browser has no network. Needs chromium from the system, which
Playwright drives.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    TimeoutError as TookTooLong,
    sync_playwright,
)

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WINDOWS = {"wide": (1280, 900), "phone": (390, 844)}
MODES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
TALLEST = 6000
PATIENCE = 180_000  # milliseconds: the page on the package is long
# No name but this machine's own can be resolved.
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"

FORMULAS_UNSET = """[...document.querySelectorAll('.math')]
    .filter(x => !x.querySelector('mjx-container')).length"""
PICTURES_MISSING = """[...document.images]
    .filter(x => x.loading != 'lazy' && !x.naturalWidth).map(x => x.src).join(' ')"""


def main() -> int:
    """Look at every page; the exit status is 1 if there was a complaint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--html", type=Path, default=Path("_build/html"))
    parser.add_argument("--pages", nargs="*")
    given = parser.parse_args()
    pages = given.pages or sorted(
        path.relative_to(given.html).as_posix()
        for top in ("book", "chapters")
        for path in (given.html / top).rglob("*.html")
    )
    given.out.mkdir(parents=True, exist_ok=True)
    complaints = 0
    with serve(given.html) as home, open_browser() as browser:
        views = open_views(browser)
        for page in pages:
            for text in look_at(views, home, page, given.out):
                complaints += 1
                print(f"{page}: {text}", flush=True)
    print(f"{len(pages)} pages, {complaints} complaints; {given.out}")
    return int(complaints > 0)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Hands out files without a word."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server of the folder's files, on this machine only."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """The system's chromium, without a window and without a network."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        sys.exit("look.py needs chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[NO_NETWORK])
        yield browser
        browser.close()


def open_views(browser: Browser) -> dict[str, BrowserContext]:
    """A context for every window and mode, by its name: wide-light, phone-dark."""
    return {
        f"{window}-{mode}": browser.new_context(
            viewport={"width": width, "height": height},
            is_mobile=window == "phone",
            color_scheme=mode,
        )
        for window, (width, height) in WINDOWS.items()
        for mode in MODES
    }


def look_at(
    views: dict[str, BrowserContext], home: str, page: str, out: Path
) -> list[str]:
    """Four pictures of a page, and what is wrong with it."""
    name = re.sub(r"\W+", "_", page.removesuffix(".html"))
    problems: set[str] = set()
    for view, context in views.items():
        tab = context.new_page()
        watch(tab, home, problems)
        tab.goto(home + page, timeout=PATIENCE)
        with contextlib.suppress(TookTooLong):
            tab.wait_for_function(f"{FORMULAS_UNSET} == 0", timeout=10_000)
        tab.wait_for_timeout(400)
        width, _ = WINDOWS[view.split("-")[0]]
        wide = tab.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            problems.add(f"{view}: {wide} px wide in a window of {width}")
        if unset := tab.evaluate(FORMULAS_UNSET):
            problems.add(f"{view}: {unset} formulas not set")
        if missing := tab.evaluate(PICTURES_MISSING):
            problems.add(f"pictures that do not load: {missing}")
        # A taller window, not a picture of the whole page: some are 300,000 px tall.
        tall = min(tab.evaluate("document.documentElement.scrollHeight"), TALLEST)
        tab.set_viewport_size({"width": width, "height": tall})
        tab.screenshot(path=out / f"{name}-{view}.png")
        tab.close()
    return sorted(problems)


def watch(tab: Page, home: str, problems: set[str]) -> None:
    """Note errors, warnings, and requests that leave, as they happen in a tab."""
    inside = (home, "data:", "blob:", "about:")

    def note_message(message: Any) -> None:
        if message.type in ("error", "warning"):
            place = message.location.get("url", "")
            problems.add(f"console {message.type}: {message.text} {place}".rstrip())

    def note_request(request: Any) -> None:
        if not request.url.startswith(inside):
            problems.add(f"request to {request.url}")

    tab.on("pageerror", lambda error: problems.add(f"exception: {error.stack}"))
    tab.on("console", note_message)
    tab.on("request", note_request)


if __name__ == "__main__":
    sys.exit(main())
