"""A voice-command loop: what a microphone hears becomes commands, and hot words make them likely.

    python docs/examples/voice_commands.py [--model en]

The commands are hot words, outside and inside the vocabulary, so that "lights on" is not heard as "lights are". A short
pause ends a command. With a WAV file in place of the microphone: ``--file FILE``.
"""

import argparse
import queue

import numpy as np

from asr import Recognizer, Segment
from asr.audio import read_media
from client.capture import Capture, choose, load_portaudio

COMMANDS = {
    "lights on": lambda: print("-> the lights go on"),
    "lights off": lambda: print("-> the lights go off"),
    "stop listening": lambda: None,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="en")
    parser.add_argument("--file", help="instead of the microphone")
    args = parser.parse_args()
    recognizer = Recognizer.load(args.model, threads=1)
    source = None if args.file else Capture(portaudio := load_portaudio(), choose(portaudio, None))
    rate = source.rate if source else recognizer.sample_rate
    stream = recognizer.stream(
        rate, partials=False, hotwords=[(phrase, 4.0) for phrase in COMMANDS], endpointing={"pause_s": 0.6}
    )
    for block in from_microphone(source) if source else read_media(args.file):
        for segment in stream.feed(block):
            if isinstance(segment, Segment) and not obey(segment):
                return
    for segment in stream.finish():
        obey(segment)


def from_microphone(source: Capture):
    """Blocks of int16 samples, for ever."""
    source.start()
    try:
        while True:
            try:
                yield np.frombuffer(source.blocks.get(timeout=1.0) or b"", "<i2")
            except queue.Empty:
                source.check()
    finally:
        source.stop()


def obey(segment: Segment) -> bool:
    """Do what was said; False to end. What is not sure enough, or no command, is only shown."""
    print(f"{segment.text}  ({segment.confidence if segment.confidence is not None else 1:.0%})", flush=True)
    for phrase, action in COMMANDS.items():
        if segment.text.endswith(phrase) and (segment.confidence is None or segment.confidence > 0.5):
            action()
            return phrase != "stop listening"
    return True


if __name__ == "__main__":
    main()
