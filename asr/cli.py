"""The ``asr`` command. Subcommands are thin: arguments are parsed here, all else is imported when it is needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from asr import __version__
from asr.errors import ERRORS, AsrError

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
BROKEN_PIPE = 141  # 128 + SIGPIPE

Subcommand = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (that of the process by default) and return the exit status.

    Errors are one line on standard error; ``--debug``, before or after the subcommand, shows the traceback as well.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as done:  # after --help, --version or a wrong argument
        return int(done.code or 0)
    debug = getattr(args, "debug", False)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("asr: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except AsrError as error:
        return _report(debug, str(error), ERRORS[error.code].exit_status)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        return _report(debug, f"internal error: {type(error).__name__}: {text} (--debug shows where)", 1)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(ERRORS["usage"].exit_status, f"asr: error: {message} ('{self.prog} --help' shows how)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it returns has the subcommand's function as ``run``."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks of errors")
    parser = _Parser(prog="asr", description="Streaming speech recognition.", parents=[common])
    parser.add_argument("--version", action="version", version=f"asr {__version__}")
    commands = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)

    def add(name: str, help: str, run: Subcommand) -> argparse.ArgumentParser:
        description = help[0].upper() + help[1:] + "."
        command = commands.add_parser(name, help=help, description=description, parents=[common])
        command.set_defaults(run=run)
        return command

    _add_transcribe(add("transcribe", "turn media files into text", _transcribe))
    return parser


# --- asr transcribe -------------------------------------------------------------------------------------------------


def _add_transcribe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="media file, folder, glob pattern, or - (stdin)")
    parser.add_argument("-o", "--out-dir", type=Path, metavar="DIR", help="write files there instead of printing text")
    parser.add_argument(
        "-f", "--format", type=_names, default=("txt",), metavar="F,...",
        help="txt (default), json, srt, vtt, tsv, ctm; several, with commas, need -o",
    )  # fmt: skip
    parser.add_argument("--model", default="en", metavar="NAME|DIR", help="shipped model or model folder (default: en)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads per process (with --jobs: 1)")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="processes that share the files (1)")
    parser.add_argument("--channel", type=_not_negative, metavar="N", help="use this channel (from 0), not the mix")
    parser.add_argument("--force", action="store_true", help="overwrite existing outputs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and notes, only errors")


def _transcribe(args: argparse.Namespace) -> int:
    from asr.transcribe import Options, transcribe

    return transcribe(
        Options(
            files=tuple(args.files),
            out_dir=args.out_dir,
            formats=args.format,
            model=args.model,
            device=args.device,
            threads=args.threads,
            jobs=args.jobs,
            channel=args.channel,
            force=args.force,
            quiet=args.quiet,
        )
    )


# --- arguments and errors -------------------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _positive(text: str) -> int:
    return _integer(text, 1)


def _not_negative(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not '{text}'")
    return value


def _report(debug: bool, message: str, status: int) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"asr: error: {message}", file=sys.stderr)
    return status


def _forget_stdout() -> None:
    """Nobody reads standard output any more: keep the interpreter from failing when it flushes it at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (lives as long as the process)
