"""Clients that we did not write work unchanged."""

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from serving import RATE, chunks, offline, run, serving, speech, url
from websockets.asyncio.client import connect


def test_the_deepgram_sdk(tiny_path: Path, tiny: Any, tmp_path: Path) -> None:
    sdk = pytest.importorskip("deepgram", reason="the package deepgram-sdk is not installed")
    from deepgram.core.events import EventType
    from deepgram.environment import DeepgramClientEnvironment

    (tmp_path / "tokens").write_text("secret-key\n")
    pcm = speech(5, seed=41)

    async def main() -> None:
        async with serving(tiny_path, tokens=str(tmp_path / "tokens")) as server:
            address = f"ws://127.0.0.1:{server.port}"
            place = DeepgramClientEnvironment(
                base=address, production=address, agent=address, **_more(DeepgramClientEnvironment, address)
            )
            client = sdk.AsyncDeepgramClient(api_key="secret-key", environment=place)
            said: list[Any] = []
            async with client.listen.v1.connect(
                model="nova-3", encoding="linear16", sample_rate=RATE, interim_results=True
            ) as connection:
                connection.on(EventType.MESSAGE, said.append)
                listening = asyncio.create_task(connection.start_listening())
                for chunk in chunks(pcm):
                    await connection.send_media(chunk)
                await connection.send_close_stream()
                await listening
            finals = [m for m in said if m.type == "Results" and m.is_final]
            texts = [m.channel.alternatives[0].transcript for m in finals]
            assert " ".join(text for text in texts if text) == offline(tiny, pcm)
            assert said[-1].type == "Metadata" and said[-1].duration == pytest.approx(5.0)
            assert any(m.type == "Results" and not m.is_final for m in said)

    run(main)


def _more(cls: Any, address: str) -> dict[str, str]:
    """Addresses that newer releases of the SDK ask for."""
    known = {"self", "base", "production", "agent"}
    return {name: address for name in inspect.signature(cls.__init__).parameters if name not in known}


def test_the_sequence_of_vosk_servers_example_client(tiny_path: Path, tiny: Any) -> None:
    """As in its websocket/test.py: configuration, frames with one answer each, eof, one last answer."""
    pcm = speech(4, seed=42)

    async def main() -> None:
        async with serving(tiny_path) as server:
            found = []
            async with connect(url(server, "/")) as websocket:  # with its library's defaults: compression is offered
                await websocket.send(f'{{ "config" : {{ "sample_rate" : {RATE} }} }}')
                for data in chunks(pcm, 8000):
                    await websocket.send(data)
                    found.append(json.loads(await websocket.recv()))
                await websocket.send('{"eof" : 1}')
                found.append(json.loads(await websocket.recv()))
            assert all(("partial" in m) != ("text" in m) for m in found)
            assert " ".join(m["text"] for m in found if m.get("text")) == offline(tiny, pcm)
            words = [word for m in found for word in m.get("result", ())]
            assert [set(word) for word in words] == [{"conf", "end", "start", "word"}] * len(words)

    run(main)
