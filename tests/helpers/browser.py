"""A headless Chromium that tests click through, driven over its own DevTools protocol: messages on two pipes."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_SECONDS = 120


def find_browser() -> str:
    """Path of a browser; skips the test where there is none."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH; on Debian: apt-get install chromium")
    return found


class Page:
    """One open page. Positions are CSS pixels of the window."""

    def __init__(self, reading: int, writing: int, downloads: Path) -> None:
        self._reading, self._writing, self._buffer, self._number = reading, writing, b"", 0
        self.downloads = downloads
        self.console: list[str] = []
        """Errors, and what the page's security policy refused."""
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        """Kinds of dialogs that opened; each is accepted."""
        self._session: str | None = None
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        session, self._session = self._session, None
        self._send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self._session = session

    def resize(self, width: int, height: int) -> None:
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def prefer(self, *, dark: bool) -> None:
        value = "dark" if dark else "light"
        self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def open(self, file: Path) -> None:
        self._send("Page.navigate", url=file.as_uri())
        self.wait_for("document.readyState == 'complete'")

    def run(self, script: str) -> Any:
        """Value of an expression, promises awaited."""
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never: {condition}"
            time.sleep(0.02)

    def press(self, x: float, y: float, kind: str = "mousePressed", button: str = "left") -> None:
        """Send one event of the mouse: mousePressed, mouseMoved or mouseReleased."""
        self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def drag(self, places: list[tuple[float, float]], button: str = "left") -> None:
        """Press at the first place, move over the others, release at the last: of one place, a click."""
        self.press(*places[0], "mouseMoved", "none")
        self.press(*places[0], "mousePressed", button)
        for place in places[1:]:
            self.press(*place, "mouseMoved", button)
        self.press(*places[-1], "mouseReleased", button)

    def wheel(self, x: float, y: float, delta: float) -> None:
        self._send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def key(self, key: str, ctrl: bool = False, shift: bool = False) -> None:
        modifiers = 2 * ctrl + 8 * shift
        text = {"text": key} if len(key) == 1 and not ctrl else {}
        self._send("Input.dispatchKeyEvent", type="keyDown", key=key, modifiers=modifiers, **text)
        self._send("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def click_on(self, selector: str) -> None:
        """Click the middle of an element."""
        script = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{script}.scrollIntoView({{block: 'nearest'}})")
        box = self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({script}.getBoundingClientRect())")
        self.drag([(box[0], box[1])])

    def downloaded(self, name: str) -> bytes:
        """Content of a file, when it has come; it is removed."""
        file, deadline = self.downloads / name, time.monotonic() + _PATIENCE_SECONDS
        while not file.exists():
            assert time.monotonic() < deadline, f"{name} was not downloaded"
            self.run("0")
            time.sleep(0.02)
        content = file.read_bytes()
        file.unlink()
        return content

    def screenshot(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"])

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._write(method, **parameters)
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            if "method" in answer:
                self._note(answer)

    def _write(self, method: str, **parameters: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._reading, 2**20)
            assert part, "the browser ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event["method"] == "Page.javascriptDialogOpening":
            self.dialogs.append(values["type"])
            self._write("Page.handleJavaScriptDialog", accept=True)
        elif event["method"] == "Runtime.exceptionThrown":
            self.console.append(json.dumps(values["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.console.append(values["entry"]["text"])


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """A browser with a fresh profile below a folder, and no way to the network."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    command = [
        *(find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        *("--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
        f"--user-data-dir={folder / 'profile'}",
    ]
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
    wrapped = ["bash", "-c", script, "bash", str(in_read), str(out_write), *command]
    process = subprocess.Popen(wrapped, pass_fds=(in_read, out_write), stderr=subprocess.DEVNULL)
    os.close(in_read)
    os.close(out_write)
    try:
        yield Page(out_read, in_write, downloads)
    finally:
        os.close(in_write)
        os.close(out_read)
        process.terminate()
        process.wait(timeout=_PATIENCE_SECONDS)
