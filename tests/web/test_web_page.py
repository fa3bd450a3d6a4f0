"""The page in a headless browser with a fake microphone: what stands on it is what the server said."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import PHONE, Page
from tiny_model import babble
from web_house import Web, offline, write_wav

TEXT = "[...document.querySelectorAll('#transcript .text')].map((e) => e.textContent)"
IDLE = "!document.body.classList.contains('busy')"
LISTENS = "document.body.classList.contains('busy')"
SHOWN = "(id) => !document.getElementById(id).hidden"


def rate_of(page: Page) -> int:
    """That of the browser, as it told the server."""
    return int(json.loads(page.sent[0])["sample_rate"])


async def listen(page: Page, seconds: float) -> None:
    """Press the button, let the microphone hear so much, press it again."""
    await page.click("#record")
    await page.until(LISTENS)
    await page.until(f"Number(time.textContent.split(':')[1]) >= {seconds}", 60)
    await page.click("#record")
    await page.until(IDLE, 60)


def test_speech_becomes_text(web: Web, tiny: Any) -> None:
    """The words on the page are the server's finals, and those are what the recogniser hears in what was sent."""

    async def test() -> None:
        async with web.looking() as page:
            await listen(page, 6)
            shown = await page.run(TEXT)
            assert shown and shown == page.finals
            assert " ".join(shown) == offline(tiny, page.audio, rate_of(page))
            assert page.of("done")[0]["audio_samples"] == len(page.audio) // 2
            sizes = [len(frame) for frame in page.sent if isinstance(frame, bytes)]
            assert set(sizes[:-1]) == {rate_of(page) // 50 * 2}  # 20 ms
            assert await page.run("document.getElementById('partial').hidden && delay.textContent.endsWith(' ms')")

    web.run(test)


def test_partials_are_firm_and_dim_and_only_finals_are_announced(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            await page.click("#record")
            await page.until("stable.textContent && unstable.textContent")
            colours = await page.run(
                "['stable', 'unstable'].map((id) => getComputedStyle(document.getElementById(id)).color)"
            )
            assert colours[0] != colours[1]
            live = await page.run("transcript.getAttribute('aria-live') + transcript.contains(stable)")
            assert live == "politefalse" and await page.run("partial.getAttribute('aria-live')") == "off"
            await page.press("Escape", 27)
            await page.until(IDLE)
            assert await page.run(TEXT) == page.finals

    web.run(test)


def test_a_dropped_file_is_read_and_downloaded(web: Web, tiny: Any, tmp_path: Path) -> None:
    async def test() -> None:
        sound = babble(20, 5)
        file = write_wav(tmp_path / "talk.wav", sound, 16000)
        async with web.looking(downloads=tmp_path) as page:
            await page.drop(file)
            await page.until(f"{LISTENS} || transcript.children.length")
            await page.until(IDLE, 60)
            shown = await page.run(TEXT)
            assert shown == page.finals
            assert page.audio == (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()  # bit for bit
            assert " ".join(shown) == offline(tiny, page.audio, 16000)
            for kind in ("txt", "srt", "vtt"):
                await page.click(f"[data-download={kind}]")
                text = await downloaded(tmp_path, kind)
                assert "".join(shown).replace(" ", "") == letters(text, kind)

    web.run(test)


async def downloaded(folder: Path, kind: str) -> str:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if found := list(folder.glob(f"transcript-*.{kind}")):
            return found[0].read_text(encoding="utf-8")
        await asyncio.sleep(0.05)
    raise AssertionError(f"no .{kind} was downloaded")


def letters(text: str, kind: str) -> str:
    """The words of a file, without numbers and times."""
    lines = [line for line in text.split("\n") if "-->" not in line and not line.isdigit() and line != "WEBVTT"]
    assert (kind == "txt") == ("-->" not in text)
    return "".join("".join(lines).split())


def test_a_chosen_file_and_one_that_is_no_sound(web: Web, tmp_path: Path) -> None:
    async def test() -> None:
        async with web.looking() as page:
            document = (await page.call("DOM.getDocument"))["root"]["nodeId"]
            node = (await page.call("DOM.querySelector", nodeId=document, selector="#file"))["nodeId"]
            (tmp_path / "notes.mp3").write_text("no sound")
            await page.call("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "notes.mp3")])
            said = "notes.mp3 holds no sound that this browser can read."
            await page.until(
                f"document.getElementById('alert').textContent === {json.dumps(said[0].upper() + said[1:])}"
            )
            file = write_wav(tmp_path / "talk.wav", babble(3, 5), 16000)
            await page.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])
            await page.until(f"transcript.children.length && {IDLE}", 60)
            assert await page.run(TEXT) == page.finals
            assert await page.run("document.getElementById('alert').textContent") == ""

    web.run(test)


def test_clear_can_be_undone_and_copy_copies(web: Web, tmp_path: Path) -> None:
    async def test() -> None:
        async with web.looking() as page:
            await page.drop(write_wav(tmp_path / "talk.wav", babble(8, 5), 16000))
            await page.until(f"transcript.children.length && {IDLE}", 60)
            shown = await page.run(TEXT)
            await page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
            await page.click("#copy")
            assert (await page.until("window.copied")).split("\n")[:-1] == shown
            await page.click("#clear")
            assert await page.run(TEXT) == [] and await page.run(f"({SHOWN})('empty')")
            await page.click("#notice button")
            assert await page.run(TEXT) == shown and not await page.run(f"({SHOWN})('empty')")

    web.run(test)


def test_options_reach_the_server_and_are_kept(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            await page.click("#open-options")
            change = "(id, value) => { const e = document.getElementById(id); e.value = value;"
            change += " e.dispatchEvent(new Event('change')); }"
            await page.run(f"({change})('hotwords', ' stone \\n\\n tone')")
            await page.run(f"({change})('pause', '0.5')")
            await page.click("#lm")
            await page.press("Escape", 27)
            await listen(page, 2)
            config = page.of("ready")[0]["config"]
            assert [h["text"] for h in config["hotwords"]] == ["stone", "tone"]
            assert config["endpointing"]["pause_s"] == 0.5 and config["lm"] == "none"
            await page.open(page.url)
            assert await page.run("[hotwords.value.trim(), pause.value, lm.checked]") == [
                "stone \n\n tone",
                "0.5",
                False,
            ]

    web.run(test)


def test_a_token_is_asked_for_where_the_server_wants_one(web: Web, tmp_path: Path) -> None:
    async def test() -> None:
        tokens = tmp_path / "tokens"
        tokens.write_text("secret-word\n")
        async with web.looking(tokens=str(tokens)) as page:
            await page.click("#record")
            await page.until("document.getElementById('token-dialog').open", 60)
            assert await page.run("document.activeElement.id") == "token"
            await page.call("Input.insertText", text="secret-word")
            await page.press("Enter", 13, "\r")
            await page.until("stable.textContent || transcript.children.length", 60)
            await page.click("#record")
            await page.until(IDLE)
            shown = await page.run(TEXT)
            assert shown and shown == page.finals
            assert "secret-word" not in await page.run("JSON.stringify(localStorage) + location.href")
            refused = [e for e in page.errors if "401" in e or "WebSocket connection" in e]
            assert page.errors == refused  # browsers write down every refusal
            page.errors.clear()

    web.run(test)


def test_keyboard_alone_is_enough(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            seen = []
            for _ in range(5):
                await page.press("Tab", 9)
                seen.append(await page.run("document.activeElement.id || document.activeElement.className"))
                outline = await page.run("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", seen
            assert seen == ["skip", "theme", "open-options", "choose", "record"]
            await page.run("record.focus()")
            await page.press("Enter", 13, "\r")
            await page.until(f"{LISTENS} && record.getAttribute('aria-label') === 'Stop listening'")
            await page.press("Escape", 27)
            await page.until(IDLE)

    web.run(test)


NAMELESS = """[...document.querySelectorAll('button, input, select, textarea, canvas, progress, dialog')].filter((e) =>
  !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length || e.getAttribute('aria-labelledby')
    || e.hidden)).map((e) => e.id)"""
CONTRAST = """(() => {
  const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const probe = document.body.appendChild(document.createElement('i'));
  const colour = (name) => { probe.style.color = `var(--${name})`; return light(getComputedStyle(probe).color); };
  const ratio = (a, b) => { const [x, y] = [colour(a), colour(b)];
    return (Math.max(x, y) + .05) / (Math.min(x, y) + .05); };
  const pairs = [['ink', 'paper'], ['soft', 'paper'], ['soft', 'raised'], ['shade-1', 'paper'], ['shade-2', 'paper'],
    ['shade-3', 'paper'], ['on-accent', 'accent'], ['live', 'paper']];
  const found = Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(a, b)]));
  probe.remove();
  return found; })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(web: Web, scheme: str) -> None:
    """Contrast of WCAG 2.2 AA; every control has a name; nothing is cut off at the width of a phone; the switch."""

    async def test() -> None:
        async with web.looking() as page:
            await page.media(scheme)
            assert await page.run(NAMELESS) == []
            assert {pair: ratio for pair, ratio in (await page.run(CONTRAST)).items() if ratio < 4.5} == {}
            await page.size(*PHONE)
            assert await page.run("document.documentElement.scrollWidth <= innerWidth")
            box = "[...document.querySelectorAll('.dock button, .bar button, .dock dd')].filter((e) => e.offsetParent)"
            assert await page.run(
                f"{box}.every((e) => (b => b.left >= 0 && b.right <= innerWidth)(e.getBoundingClientRect()))"
            )
            before = await page.run("getComputedStyle(document.body).backgroundColor")
            await page.click("#theme")
            assert await page.run("getComputedStyle(document.body).backgroundColor") != before
            await page.open(page.url)
            assert await page.run("getComputedStyle(document.body).backgroundColor") != before  # it is kept

    web.run(test)


def test_captions(web: Web, tiny: Any) -> None:
    async def test() -> None:
        async with web.looking("static/captions.html?lines=3&hide=0&color=yellow") as page:
            await page.until("said.textContent.length > 10", 60)
            assert await page.run("getComputedStyle(captions).color") == "rgb(255, 255, 0)"
            await page.open(page.url + "static/captions.html?line=3&size=big")
            said = await page.until("document.getElementById('message').textContent")
            assert "no option “line”" in said and "“size” must be 8 to 400" in said

    web.run(test)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(model: Path, port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "asr", "serve", "--model", str(model), "--port", str(port), "--log-level", "error"]
    return subprocess.Popen(command)


def test_a_server_that_is_killed_and_started_again(web: Web, tiny: Any, tiny_path: Path) -> None:
    """kill -9 in mid-word: nothing is left of the session, and yet every word comes, since the page sends again what
    has no final."""

    async def test() -> None:
        port = free_port()
        process = start(tiny_path, port)
        try:
            async with web.browser.page() as page:
                await open_when_up(page, f"http://127.0.0.1:{port}/")
                await page.click("#record")
                await page.until("stable.textContent.length > 5", 60)
                process.kill()
                process.wait()
                await page.until("notice.textContent.includes('connection is lost')")
                process = start(tiny_path, port)
                await page.until(f"{LISTENS} && notice.textContent === ''", 90)
                await page.until("Number(time.textContent.split(':')[1]) >= 7", 60)
                await page.click("#record")
                await page.until(IDLE, 60)
                shown = await page.run(TEXT)
                assert not await page.run("document.querySelector('.loss')")
                assert shown == page.finals
                given = page.of("done")[0]["audio_samples"]
                again = page.audio[-2 * given :]  # what the second server got
                assert " ".join(shown[-len(page.of("final")) :]).endswith(offline(tiny, again, rate_of(page)))
                assert all("WebSocket" in e or "ERR_CONNECTION_REFUSED" in e for e in page.errors), page.errors
        finally:
            process.kill()
            process.wait()

    web.run(test, 240)


async def open_when_up(page: Page, url: str) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        await page.call("Page.navigate", url=url)
        await asyncio.sleep(0.5)
        if await page.run("document.title") == "Live transcript":
            page.errors.clear()
            return await page.until("document.readyState === 'complete'")
    raise AssertionError("the server did not start")
