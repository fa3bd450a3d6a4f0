"""Transcribe a phone call while it runs: 8 kHz, G.711 mu-law, as it comes out of an RTP stream or a file.

    python docs/examples/phone_call.py CALL.ulaw [--server ws://localhost:2700] [--channels 2]

With two channels (caller and callee, interleaved) each gets a stream of its own, so that both are told apart even where
they speak at once.
"""

import argparse
import asyncio

from client import Notice, Segment, connect

RATE, BLOCK_S = 8000, 0.02  # what a telephone sends: 160 bytes every 20 ms


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("call")
    parser.add_argument("--server", default="ws://localhost:2700")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--realtime", action="store_true")
    args = parser.parse_args()
    await asyncio.gather(*(transcribe(args, side) for side in range(args.channels)))


async def transcribe(args: argparse.Namespace, side: int) -> None:
    """One side of the call."""
    async with connect(
        args.server, sample_rate=RATE, encoding="mulaw", channels=args.channels, channel=side, partials=False
    ) as stream:
        sending = asyncio.create_task(send(stream, args))
        async for result in stream:
            if isinstance(result, Segment):
                print(f"{result.start:7.2f}  {'AB'[side]}  {result.text}", flush=True)
            elif isinstance(result, Notice):
                print(f"         {'AB'[side]}  ({result.message})", flush=True)
        await sending


async def send(stream, args: argparse.Namespace) -> None:
    """In the packets of a telephone."""
    with open(args.call, "rb") as call:
        while block := call.read(round(RATE * BLOCK_S) * args.channels):
            await stream.send(block)
            if args.realtime:
                await asyncio.sleep(BLOCK_S)
    await stream.eof()


if __name__ == "__main__":
    asyncio.run(main())
