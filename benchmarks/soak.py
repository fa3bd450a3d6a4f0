"""A server for half an hour with sessions that come and go: memory, lag and texts.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--minutes 30] [--streams 20] [--model en] [FILE...]

Every stream speaks a clip or some in real time on the vosk path and leaves; one in five drops its connection in
mid-word, one in ten sends its audio as fast as it can. The next one takes its place. Each minute: memory of the
server's processes, sessions so far (wrong: whose text was not that of the same audio offline), lag. At the end: the
slope of memory after the first five minutes.
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from pathlib import Path

import numpy as np

from server.bench import RATE, Load, default_clips, own_server, prepare

CHUNK_S = 0.1


async def session(url, speech, rng, seen):
    """One stream; what it measured goes into ``seen``."""
    from websockets.asyncio.client import connect

    pcm, text = rng.choice(speech)
    size = int(CHUNK_S * RATE) * 2
    chunks = [pcm[i : i + size] for i in range(0, len(pcm), size)]
    drops, fast = rng.random() < 0.2, rng.random() < 0.1
    if drops:
        chunks = chunks[: rng.randrange(1, len(chunks))]
    async with asyncio.timeout(180):
        ws = await connect(url + "/vosk", compression=None)
        await ws.send(json.dumps({"config": {"sample_rate": RATE}}))
        texts, began, sent = [], time.monotonic(), []

        async def listen():
            for number in range(len(chunks) + (not drops)):
                answer = json.loads(await ws.recv())
                if number < len(chunks) and not fast:
                    seen["lags"].append(1000 * (time.monotonic() - sent[number]))
                if answer.get("text"):
                    texts.append(answer["text"])

        listening = asyncio.create_task(listen())
        for number, chunk in enumerate(chunks):
            if not fast:
                await asyncio.sleep(max(0.0, began + (number + 1) * CHUNK_S - time.monotonic()))
            sent.append(time.monotonic())
            await ws.send(chunk)
        if drops:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            ws.transport.abort()
            seen["dropped"] += 1
            return
        await ws.send('{"eof" : 1}')
        await listening
        await ws.close()
    seen["finished"] += 1
    seen["wrong"] += " ".join(texts) != text


async def seat(url, speech, rng, seen, end):
    """Sessions one after the other until the end."""
    await asyncio.sleep(rng.uniform(0, 5))
    while time.monotonic() < end:
        try:
            await session(url, speech, rng, seen)
        except Exception as error:
            seen["failed"] += 1
            print("failed:", repr(error), flush=True)
        await asyncio.sleep(rng.uniform(0, 1))


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--model", default="en")
    args = parser.parse_args()
    load = Load(seconds=8.0, model=args.model)
    speech = prepare(args.files or default_clips(), load, print)
    seen = {"lags": [], "finished": 0, "dropped": 0, "wrong": 0, "failed": 0}
    rows = []
    async with own_server(load, args.streams + 5, None, ["--resume-seconds", "60"]) as (url, processes):
        began = time.monotonic()
        end = began + 60 * args.minutes
        seats = [asyncio.create_task(seat(url, speech, random.Random(i), seen, end)) for i in range(args.streams)]
        print("minute  memory MB  finished  dropped  failed  wrong  lag 95 %", flush=True)
        while time.monotonic() < end:
            await asyncio.sleep(min(60.0, max(0.1, end - time.monotonic())))
            minute, memory = (time.monotonic() - began) / 60, processes.memory() / 1e6
            lag = np.percentile(seen["lags"], 95) if seen["lags"] else float("nan")
            rows.append((minute, memory))
            seen["lags"].clear()
            print(f"{minute:6.1f} {memory:10.1f} {seen['finished']:9d} {seen['dropped']:8d} {seen['failed']:7d} "
                  f"{seen['wrong']:6d} {lag:8.0f} ms", flush=True)  # fmt: skip
        await asyncio.gather(*seats)
    late = np.array([r for r in rows if r[0] >= 5])
    if len(late) > 2:
        print(f"memory after five minutes: {np.polyfit(late[:, 0], late[:, 1], 1)[0]:+.3f} MB a minute")


asyncio.run(main())
