"""``asr stream`` and ``asr mic``: arguments, and what they run."""

from __future__ import annotations

import argparse
import os
import ssl
import sys
from pathlib import Path
from typing import Any

from asr.errors import AsrError, UsageError
from asr.results import Transcript

SERVER, TOKEN = "ASR_SERVER", "ASR_TOKEN"


# --- arguments


def add_stream(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``asr stream``."""
    parser.add_argument("file", metavar="FILE", help="media file, or - for raw samples or WAV from standard input")
    parser.add_argument("--realtime", action="store_true", help="send a file as fast as it was spoken")
    parser.add_argument("--rate", type=int, metavar="HZ", help="of raw samples (16000)")
    parser.add_argument(
        "--encoding", metavar="NAME", help="of raw samples: pcm_s16le (default), pcm_f32le, mulaw or alaw"
    )
    parser.add_argument("--channels", type=int, metavar="N", help="of raw samples, interleaved (1)")
    _add_server(parser, required=True)
    _add_options(parser)


def add_mic(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``asr mic``."""
    _add_server(parser, required=False)
    parser.add_argument("--model", default="en", metavar="NAME|DIR", help="without --server: model to use (en)")
    parser.add_argument("--threads", type=int, metavar="N", help="without --server: threads of the recogniser")
    parser.add_argument("--device", metavar="N|NAME", help="microphone: number, or part of its name")
    parser.add_argument("--list-devices", action="store_true", help="list the microphones, and end")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long (default: with Ctrl-C)")
    _add_options(parser)


def _add_server(parser: argparse.ArgumentParser, required: bool) -> None:
    where = f"server to use, ws://HOST:PORT or wss://HOST (default: ${SERVER}"
    parser.add_argument("--server", metavar="URL", help=where + (")" if required else ", else this machine)"))
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"file with the server's token (${TOKEN})")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="trust this certificate, for wss")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="save it, too: .txt .json .srt .vtt .tsv .ctm")
    parser.add_argument("--force", action="store_true", help="overwrite that file")
    parser.add_argument(
        "--hotwords", action="append", metavar="FILE|PHRASE",
        help="phrase to expect, or a file of them, one a line; a boost may follow after a colon or tab; repeatable",
    )  # fmt: skip
    parser.add_argument("--endpointing", metavar="off|KEY=S,...", help="where segments end, as pause_s=0.8")
    parser.add_argument("--no-lm", action="store_true", help="leave the language model out")
    parser.add_argument("--plain", action="store_true", help="plain lines on a terminal, too")
    parser.add_argument("--quiet", action="store_true", help="no notes, only text and errors")


# --- asr stream


def stream(args: argparse.Namespace) -> int:
    """Send a file or standard input to a server. Raises AsrError."""
    from client.hearing import Remote
    from client.sources import Playback, open_sound

    output, options = _output(args), _options(args)
    url = args.server or os.environ.get(SERVER, "")
    if not url:
        raise UsageError(f"which server? give --server ws://HOST:PORT, or set {SERVER}; 'asr serve' starts one")
    sound = open_sound(args.file, sys.stdin.buffer, args.rate, args.encoding, args.channels, args.realtime)
    remote = Remote(_connect(args, url, sound.rate, options, encoding=sound.encoding, channels=sound.channels))
    transcript, error = _show(args, Playback(sound, args.realtime), remote, meter=args.realtime)
    for line in sound.damage:
        print(f"asr: note: {line}", file=sys.stderr)
    return _end(output, transcript, error, "" if args.file == "-" else args.file)


# --- asr mic


def mic(args: argparse.Namespace) -> int:
    """Recognise what a microphone hears, here or on a server. Raises AsrError."""
    from client import capture

    portaudio = capture.load_portaudio()
    if args.list_devices:
        for device in capture.devices(portaudio):
            mark = "*" if device.default else " "
            print(f"{mark} {device.number:>3}  {device.name}  ({device.host}, {device.channels} channels,"
                  f" {device.rate:.0f} Hz)")  # fmt: skip
        return 0
    output, options = _output(args), _options(args)
    source = capture.Capture(portaudio, capture.choose(portaudio, args.device))
    hearer = _hearer(args, source.rate, options)  # all that is slow comes before the microphone is open
    transcript, error = _show(args, source, hearer, seconds=args.seconds, banner=f"listening to {source.device.name}")
    return _end(output, transcript, error, "microphone")


def _hearer(args: argparse.Namespace, rate: int, options: dict[str, Any]) -> Any:
    from client.hearing import Local, Remote

    url = args.server or os.environ.get(SERVER, "")
    if url:
        return Remote(_connect(args, url, rate, options, when_full="drop"))
    if not args.quiet:
        print("asr: note: loading the model", file=sys.stderr)
    from asr.recognizer import Recognizer

    return Local(Recognizer.load(args.model, threads=args.threads or 1), rate, options)


# --- both


def _output(args: argparse.Namespace) -> Any:
    from client.output import Output

    return Output(args.out, args.force) if args.out else None


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from asr.options import from_arguments

    return from_arguments(args.hotwords, args.endpointing, not args.no_lm)


def _token(args: argparse.Namespace) -> str:
    if args.token_file is None:
        return os.environ.get(TOKEN, "").strip()
    try:
        lines = args.token_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the token in {args.token_file}: {getattr(error, 'strerror', error)}") from None
    token = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")
    if not token:
        raise UsageError(f"there is no token in {args.token_file}: write it on a line of its own")
    return token


def _connect(args: argparse.Namespace, url: str, rate: int, options: dict[str, Any], **more: Any) -> Any:
    from client.sync import connect

    trust = None
    if args.ca is not None:
        try:
            trust = ssl.create_default_context(cafile=args.ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"the certificate {args.ca} cannot be read: {error.strerror or error}") from None
    return connect(url, token=_token(args), sample_rate=rate, ssl=trust, **options, **more).__enter__()


def _show(
    args: argparse.Namespace,
    source: Any,
    hearer: Any,
    meter: bool = True,
    seconds: float | None = None,
    banner: str = "",
) -> tuple[Transcript, BaseException | None]:
    from client.listen import listen
    from client.view import Lines, view_for

    view = Lines(sys.stdout, sys.stderr, args.quiet) if args.plain else view_for(meter=meter, quiet=args.quiet)
    if banner and not args.quiet:
        print(f"asr: note: {banner}; Ctrl-C ends", file=sys.stderr)
    view.open()
    try:
        return listen(source, hearer, view, seconds)
    finally:
        view.close()


def _end(output: Any, transcript: Transcript, error: BaseException | None, source: str) -> int:
    """Save what there is, then tell what went wrong."""
    if output is not None:
        output.save(transcript, source)
        print(f"asr: note: saved in {output.path}", file=sys.stderr)
    if error is not None:
        raise error if isinstance(error, AsrError | OSError) else RuntimeError(str(error)) from error
    return 0
