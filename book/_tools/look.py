"""Look at the built pages in a browser: pictures, errors, requests.

    python book/_tools/look.py OUT [--html _build/html] [--pages a.html b.html]

Writes a picture of every page to OUT, wide and as narrow as a telephone, light
and dark, and prints what the browser complained about, every request that did
not go to the pages themselves, formulas that were not set, and pages wider than
the window. The browser has no network. Needs chromium, and nothing from PyPI.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

WINDOWS = {"wide": (1280, 900), "phone": (390, 844)}
TALLEST = 6000


class Browser:
    """A headless chromium, spoken to over its DevTools socket."""

    def __init__(self, program: str, folder: str) -> None:
        self.process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                # No name but this machine's own can be resolved.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = Path(folder) / "DevToolsActivePort"
        for _ in range(200):
            if port_file.exists() and port_file.read_text().count("\n"):
                break
            time.sleep(0.1)
        port = port_file.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            targets = json.load(answer)
        page = next(target for target in targets if target["type"] == "page")
        path = page["webSocketDebuggerUrl"].split(port, 1)[1]
        self.socket = socket.create_connection(("127.0.0.1", int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.stream = self.socket.makefile("rb")
        while self.stream.readline().strip():
            pass
        self.last = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command, keep the events that come before its answer."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        self._send(json.dumps(message).encode())
        while True:
            answer = json.loads(self._receive())
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        return answer["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait()

    def _send(self, data: bytes) -> None:
        mask = os.urandom(4)
        size = len(data)
        if size < 126:
            head = struct.pack("!BB", 0x81, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x81, 0x80 | 127, size)
        masked = bytes(byte ^ mask[k % 4] for k, byte in enumerate(data))
        self.socket.sendall(head + mask + masked)

    def _receive(self) -> bytes:
        data = b""
        while True:
            first, second = self.stream.read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self.stream.read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self.stream.read(8))
            data += self.stream.read(size)
            if first & 0x80:
                return data


def main() -> int:
    """Look at every page; the exit status is 1 if there was a complaint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--html", type=Path, default=Path("_build/html"))
    parser.add_argument("--pages", nargs="*")
    given = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    program = program or shutil.which("google-chrome")
    if program is None:
        sys.exit("look.py needs chromium")
    found = sorted(
        path.relative_to(given.html).as_posix()
        for top in ("book", "chapters")
        for path in (given.html / top).rglob("*.html")
    )
    given.out.mkdir(parents=True, exist_ok=True)
    quiet = type(
        "Quiet",
        (http.server.SimpleHTTPRequestHandler,),
        {"log_message": lambda *_: None},
    )
    handler = functools.partial(quiet, directory=str(given.html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    complaints = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            for page in given.pages or found:
                for text in look_at(browser, home, page, given.out):
                    complaints += 1
                    print(f"{page}: {text}", flush=True)
        finally:
            browser.close()
    server.shutdown()
    print(f"{len(given.pages or found)} pages, {complaints} complaints; {given.out}")
    return int(complaints > 0)


def look_at(browser: Browser, home: str, page: str, out: Path) -> list[str]:
    """Four pictures of a page, and what is wrong with it."""
    problems: list[str] = []
    for window, (width, height) in WINDOWS.items():
        for mode in ("light", "dark"):
            browser.ask(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=window == "phone",
            )
            features = [{"name": "prefers-color-scheme", "value": mode}]
            browser.ask("Emulation.setEmulatedMedia", features=features)
            browser.events.clear()
            browser.ask("Page.navigate", url="about:blank")
            browser.ask("Page.navigate", url=home + page)
            wait(browser)
            wide = browser.run("document.documentElement.scrollWidth")
            if wide > width:
                problems.append(f"{window}: {wide} px wide in a window of {width}")
            unset = browser.run(
                "[...document.querySelectorAll('.math')]"
                ".filter(x => !x.querySelector('mjx-container')).length"
            )
            if unset:
                problems.append(f"{window}, {mode}: {unset} formulas not set")
            broken = browser.run(
                "[...document.images].filter(x => x.loading != 'lazy' && "
                "!x.naturalWidth).map(x => x.src).join(' ')"
            )
            if broken:
                problems.append(f"pictures that do not load: {broken}")
            problems += complaints_in(browser.events, home)
            tall = min(browser.run("document.documentElement.scrollHeight"), TALLEST)
            clip = {"x": 0, "y": 0, "width": width, "height": tall, "scale": 1}
            shot = browser.ask(
                "Page.captureScreenshot", clip=clip, captureBeyondViewport=True
            )
            name = re.sub(r"\W+", "_", page.removesuffix(".html"))
            target = out / f"{name}-{window}-{mode}.png"
            target.write_bytes(base64.b64decode(shot["data"]))
    return sorted(set(problems))


def wait(browser: Browser) -> None:
    """Until the page is loaded and its formulas are set."""
    ready = (
        "document.readyState == 'complete' && location.href != 'about:blank' && "
        "(!document.querySelector('.math') ||"
        " !!document.querySelector('mjx-container'))"
    )
    for _ in range(100):
        if browser.run(ready):
            break
        time.sleep(0.1)
    time.sleep(0.4)
    browser.run("0")


def complaints_in(events: list[dict[str, Any]], home: str) -> list[str]:
    """Errors, warnings, failed and outside requests among the browser's events."""
    found = []
    for event in events:
        kind, given = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            words = details.get("exception", {}).get("description", details["text"])
            found.append(f"exception: {words} {details.get('url', '')}")
        elif kind == "Runtime.consoleAPICalled" and given["type"] in (
            "error",
            "warning",
        ):
            words = " ".join(str(x.get("value", "")) for x in given["args"])
            found.append(f"console {given['type']}: {words}")
        elif kind == "Log.entryAdded" and given["entry"]["level"] == "error":
            entry = given["entry"]
            found.append(f"browser error: {entry['text']} {entry.get('url', '')}")
        elif kind == "Network.requestWillBeSent":
            address = given["request"]["url"]
            if not address.startswith((home, "data:", "blob:", "about:")):
                found.append(f"request to {address}")
    return found


if __name__ == "__main__":
    sys.exit(main())
