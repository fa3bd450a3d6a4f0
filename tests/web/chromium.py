"""A headless Chromium, driven over its DevTools protocol with the websockets library: no other package is needed.

Everything that goes wrong in a page is written down: console errors, exceptions, violations of the Content-Security-
Policy, requests to other hosts. Frames of its WebSockets are kept, so that a test knows what was really sent.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CALL_SECONDS = 90.0
PHONE = (390, 844)
DESKTOP = (1280, 800)


def find() -> str | None:
    """The browser's program; ``ASR_TEST_BROWSER`` names another one."""
    named = os.environ.get("ASR_TEST_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.errors: list[str] = []  # console errors, exceptions, log entries, policy violations
        self.hosts: set[str] = set()  # that something was asked of
        self.sent: list[str | bytes] = []  # frames of all WebSockets, in order
        self.received: list[dict[str, Any]] = []
        self.url = ""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self.browser.call(method, self.session, **parameters)

    async def prepare(self) -> None:
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Audits"):
            await self.call(f"{domain}.enable")
        await self.size(*DESKTOP)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def size(self, width: int, height: int) -> None:
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                        mobile=width < 600)  # fmt: skip

    async def media(self, scheme: str) -> None:
        """``light`` or ``dark``: what the system prefers."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression (a promise is waited for); AssertionError where it throws."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if failure := answer.get("exceptionDetails"):
            raise AssertionError(failure.get("exception", {}).get("description") or failure["text"])
        return answer["result"].get("value")

    async def module(self, body: str) -> Any:
        """What the body of an async function returns that has the page's own recognizer.js as ``asr``."""
        load = 'const asr = await import(new URL("static/recognizer.js", location.origin));'
        return await self.run(f"(async () => {{ {load} {body} }})()")

    async def until(self, script: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true; AssertionError where that does not happen."""
        end, value = time.monotonic() + seconds, None
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # the page may not be there yet
                if value := await self.run(script):
                    return value
            await asyncio.sleep(0.05)
        raise AssertionError(f"not true within {seconds:g} s: {script}; errors: {self.errors}")

    async def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text
            )

    async def drop(self, path: Path) -> None:
        """A file, from the desktop onto the page."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    async def screenshot(self, path: Path) -> None:
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def heard(self, event: str, value: dict[str, Any]) -> None:
        if keep := self._EVENTS.get(event):
            keep(self, value)

    def _console(self, value: dict[str, Any]) -> None:
        if value["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in value["args"]))

    def _exception(self, value: dict[str, Any]) -> None:
        details = value["exceptionDetails"]
        self.errors.append(details.get("exception", {}).get("description") or details["text"])

    def _entry(self, value: dict[str, Any]) -> None:
        if value["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{value['entry']['text']} {value['entry'].get('url', '')}")

    def _issue(self, value: dict[str, Any]) -> None:
        if value["issue"]["code"] == "ContentSecurityPolicyIssue":
            self.errors.append(json.dumps(value["issue"]["details"]))

    def _asked(self, value: dict[str, Any]) -> None:
        url = value["request"]["url"] if "request" in value else value["url"]
        if urlsplit(url).scheme not in ("data", "blob"):
            self.hosts.add(urlsplit(url).netloc)

    def _frame_out(self, value: dict[str, Any]) -> None:
        frame = value["response"]
        data = frame["payloadData"]
        self.sent.append(data if frame["opcode"] == 1 else base64.b64decode(data))

    def _frame_in(self, value: dict[str, Any]) -> None:
        if value["response"]["opcode"] == 1:
            self.received.append(json.loads(value["response"]["payloadData"]))

    _EVENTS: dict[str, Callable[[Page, dict[str, Any]], None]] = {  # noqa: RUF012
        "Runtime.consoleAPICalled": _console,
        "Runtime.exceptionThrown": _exception,
        "Log.entryAdded": _entry,
        "Audits.issueAdded": _issue,
        "Network.requestWillBeSent": _asked,
        "Network.webSocketCreated": _asked,
        "Network.webSocketFrameSent": _frame_out,
        "Network.webSocketFrameReceived": _frame_in,
    }

    @property
    def audio(self) -> bytes:
        """All audio that was sent, of all connections."""
        return b"".join(frame for frame in self.sent if isinstance(frame, bytes))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of a type that came."""
        return [message for message in self.received if message["type"] == kind]

    @property
    def finals(self) -> list[str]:
        """Texts of the finals that came, without empty ones."""
        return [m["text"] for m in self.of("final") if m["text"] and m["reason"] != "flush"]


class Browser:
    """A running browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; AssertionError where it is refused."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        named = {"sessionId": session} if session else {}
        await self._connection.send(json.dumps({"id": number, "method": method, "params": parameters, **named}))
        async with asyncio.timeout(CALL_SECONDS):
            return await answer

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._connection:
                message = json.loads(text)
                if "id" in message:
                    self._answer(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.heard(message["method"], message["params"])

    def _answer(self, message: dict[str, Any]) -> None:
        answer = self._answers.pop(message["id"])
        if answer.done():
            return
        if "error" in message:
            answer.set_exception(AssertionError(message["error"]["message"]))
        else:
            answer.set_result(message["result"])

    @contextlib.asynccontextmanager
    async def page(self, downloads: Path | None = None) -> AsyncIterator[Page]:
        """A new tab with storage of its own; files that it offers are put into ``downloads``."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = (await self.call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        if downloads:
            await self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads),
                            browserContextId=context)  # fmt: skip
        await page.prepare()
        try:
            yield page
        finally:
            del self._pages[session]
            await self.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.asynccontextmanager
async def browse(folder: Path, sound: Path) -> AsyncIterator[Browser]:
    """A browser whose profile lies in ``folder`` and whose microphone is the WAV file ``sound``, once."""
    program = find()
    assert program, "no Chromium"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
               "--disable-renderer-backgrounding", "--disable-background-timer-throttling", "--hide-scrollbars",
               "--remote-debugging-port=0", f"--user-data-dir={folder}", "--use-fake-device-for-media-stream",
               "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={sound}%noloop"]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        program, *options, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        address = await _address(folder / "DevToolsActivePort", process)
        async with connect(address, max_size=None, ping_interval=None, compression=None, proxy=None) as connection:
            yield Browser(connection)
    finally:
        await _end(process)


async def _address(file: Path, process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(60):
        while not (file.exists() and len(file.read_text().split()) == 2):
            assert process.returncode is None, "Chromium did not start"
            await asyncio.sleep(0.05)
    port, path = file.read_text().split()
    return f"ws://127.0.0.1:{port}{path}"


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 15)
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, 9)
        await process.wait()
