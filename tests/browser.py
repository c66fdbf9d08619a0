"""A headless Chromium that is told what to do over two pipes, in the DevTools protocol; it never reaches a network."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no Chromium on this machine"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of one browser; `problems` collects what the page's console says is wrong."""

    def __enter__(self) -> "Browser":
        (down, self._down), (self._up, up) = os.pipe(), os.pipe()
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

        # The browser reads orders from descriptor 3 and answers on 4; a shell puts them there.
        command = ["bash", "-c", f'exec "$@" 3<&{down} 4>&{up}', "bash", str(CHROMIUM), *_FLAGS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(down, up),
            stderr=subprocess.DEVNULL,
        )
        os.close(down)
        os.close(up)
        self._numbers, self._rest, self.problems, self._session = itertools.count(1), b"", [], {}
        target = next(t for t in self.tell("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.tell("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")
        self.tell("Emulation.setFocusEmulationEnabled", enabled=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self._down)
        os.close(self._up)
        self.profile.cleanup()

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._down, json.dumps(order).encode() + b"\0")
        return self._until(lambda said: said.get("id") == number)["result"]

    def _until(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._rest:
                heard = os.read(self._up, 1 << 20)
                assert heard, "the browser has ended"
                self._rest += heard
            line, _, self._rest = self._rest.partition(b"\0")
            said = json.loads(line)
            self._note(said)
            if wanted(said):
                return said

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(json.dumps(said["params"]))
        request = said.get("params", {}).get("request", {}).get("url", "")
        if said.get("method") == "Network.requestWillBeSent" and not request.startswith(("file:", "data:", "about:")):
            self.problems.append(f"asked for {request}")

    def open(self, path: Path, hash: str = "", width: int = 1300, height: int = 900) -> None:
        """Load a page at this width and wait until it is ready."""
        self.tell("Page.navigate", url="about:blank")
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.tell("Page.navigate", url=f"{path.resolve().as_uri()}{hash}")
        self._until(
            lambda said: said.get("method") == "Page.loadEventFired" and self.ask("location.protocol") == "file:"
        )

    def _is_at(self, protocol: str) -> bool:
        return self.ask("location.protocol") == protocol

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON has it."""
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))

    def shoot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))
