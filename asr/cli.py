"""The ``asr`` command. Subcommands are thin: arguments are parsed here, all else is imported when it is needed."""

from __future__ import annotations

import argparse
import math
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
Add = Callable[..., argparse.ArgumentParser]


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
    except OSError as error:  # that nobody expected in particular: a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        return _report(debug, f"{where}{error.strerror or error}", ERRORS["error"].exit_status)
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

    def group(to: argparse.ArgumentParser) -> Add:
        commands = to.add_subparsers(title="subcommands", metavar="COMMAND", required=True)

        def add(name: str, help: str, run: Subcommand | None = None) -> argparse.ArgumentParser:
            description = help[0].upper() + help[1:] + "."
            command = commands.add_parser(name, help=help, description=description, parents=[common])
            if run is not None:
                command.set_defaults(run=run)
            return command

        return add

    add = group(parser)
    _add_transcribe(add("transcribe", "turn media files into text", _transcribe))
    add("models", "list the shipped models", _models)
    _add_train(add("train", "train a model, or go on training one", _train))
    _add_eval(add("eval", "measure the error rates of a model", _eval))
    _add_calibrate(add("calibrate", "fit a model's confidences to held-out speech and measure them", _calibrate))
    _add_synth(add("synth", "make training speech from texts by speech engines", _synth))
    _add_export(add("export", "write a model for other runtimes, or with weights of 8 bits", _export))
    _add_serve(add("serve", "serve live streams over WebSockets", _serve))
    _add_client(add("mic", "recognise live what a microphone hears", _mic), "mic")
    _add_client(add("stream", "send a file or a pipe to a server, and print what it hears", _stream), "stream")
    add_bench = group(add("bench", "measure speed"))
    _add_bench_serve(add_bench("serve", "find out how many live streams a server holds", _bench_serve))
    add_lm = group(add("lm", "build and measure language models"))
    _add_lm_build(add_lm("build", "estimate a language model from texts", _lm_build))
    _add_lm_perplexity(add_lm("perplexity", "measure a language model on texts", _lm_perplexity))
    _add_lm_convert(add_lm("convert", "write a language model in another format", _lm_convert))
    _add_lm_tune(add_lm("tune", "find the weights of a model's search that give the fewest word errors", _lm_tune))
    add_readable = group(add("readable", "build and measure what makes text readable"))
    _add_readable_train(add_readable("train", "train a tagger of case and punctuation on cased texts", _readable_train))
    _add_readable_eval(add_readable("eval", "measure a tagger on the held-out parts of texts", _readable_eval))
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
    parser.add_argument("--engine", default="local", metavar="local|ray", help="ray: --jobs are actors of a cluster")
    parser.add_argument("--ray-address", default="auto", metavar="HOST:PORT", help="of the cluster (default: auto)")
    parser.add_argument("--channel", type=_not_negative, metavar="N", help="use this channel (from 0), not the mix")
    parser.add_argument("--lm", type=Path, metavar="FILE", help="this language model, not the model's own")
    parser.add_argument("--no-lm", action="store_true", help="leave the language model out")
    parser.add_argument(
        "--hotwords", action="append", metavar="FILE|PHRASE",
        help="phrase to expect, or a file of them, one a line; a boost may follow after a colon or tab; repeatable",
    )  # fmt: skip
    parser.add_argument("--alternatives", type=_not_negative, metavar="N", help="other texts per segment (json)")
    parser.add_argument(
        "--endpointing", metavar="off|KEY=S,...", help="where segments end: off, or seconds, as pause_s=0.8,long_s=20"
    )
    parser.add_argument("--readable", action="store_true", help="sentence case, punctuation, numbers as digits")
    parser.add_argument("--force", action="store_true", help="overwrite existing outputs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and notes, only errors")


def _transcribe(args: argparse.Namespace) -> int:
    from asr.options import from_arguments
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
            language_model=args.lm,
            session=from_arguments(args.hotwords, args.endpointing, not args.no_lm, args.alternatives),
            readable=args.readable,
            engine=args.engine,
            ray_address=args.ray_address,
        )
    )


# --- asr models -----------------------------------------------------------------------------------------------------


def _models(args: argparse.Namespace) -> int:
    from asr.checkpoint import CONFIG, models_folder, read_config

    status = 0
    print(f"{'name':<16} {'language':<8} {'version':<8} {'size':>10} {'latency':>8}")
    for path in sorted(file.parent for file in models_folder().glob(f"*/{CONFIG}")):
        try:
            config = read_config(path)
        except AsrError as error:
            status = _report(getattr(args, "debug", False), str(error), ERRORS[error.code].exit_status)
            continue
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file()) / 1e6
        latency = config.model.algorithmic_latency_ms
        print(f"{path.name:<16} {config.language:<8} {config.version:<8} {size:>7.1f} MB {latency:>5} ms")
    return status


# --- asr train, asr eval, asr calibrate ---------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="FILE", help="training configuration or recipe of your own (TOML)")
    what.add_argument("--recipe", metavar="NAME", help="small, librispeech-100 or librispeech-960 (docs/training.md)")
    _add_manifests(parser, "--data", "what to train on (default: the recipe's)", required=False)
    _add_manifests(parser, "--dev", "what to measure on while training (default: the recipe's)", required=False)
    parser.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="other settings than the file's, as optimizer.peak_rate=5e-4 or noise=noise.tsv; STAGE:KEY=VALUE: of one",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("run"), metavar="DIR", help="checkpoints and curves (./run)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the --out folder")
    parser.add_argument("--init", metavar="NAME|DIR", help="start from this model's weights (fine-tuning)")
    parser.add_argument("--lm", type=Path, metavar="FILE", help="language model of the result (default: the recipe's)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where downloads go (default: ~/.cache/asr)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...; several GPUs: run with torchrun")


def _train(args: argparse.Namespace) -> int:
    from asr.training.run import main

    names = ("config", "recipe", "data", "dev", "changes", "out", "resume", "init", "data_dir", "device")
    return main(**{name: getattr(args, name) for name in names}, language_model=args.lm) or 0


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="en", metavar="NAME|DIR", help="shipped model or model folder (default: en)")
    _add_manifests(parser, "--data", "what to measure on; each is a corpus with a row of its own")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write aligned errors and results there")
    parser.add_argument("--streaming", action="store_true", help="only streaming (default: both, side by side)")
    parser.add_argument("--offline", action="store_true", help="only offline")
    parser.add_argument("--greedy", action="store_true", help="without lexicon and language model")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N utterances of each corpus")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def _eval(args: argparse.Namespace) -> int:
    from asr.training.evaluate import main

    both = args.streaming == args.offline
    return (
        main(
            model=args.model,
            data=args.data,
            out=args.out,
            streaming=args.streaming or both,
            offline=args.offline or both,
            limit=args.limit,
            device=args.device,
            greedy=args.greedy,
        )
        or 0
    )


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_fitting(parser, "what to fit to and measure on, by halves of the speakers", "coefficients")


def _add_fitting(parser: argparse.ArgumentParser, use: str, found: str) -> None:
    """Arguments of commands that fit something of a model to dev tables."""
    parser.add_argument("--model", default="en", metavar="NAME|DIR", help="shipped model or model folder (default: en)")
    _add_manifests(parser, "--dev", use)
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N utterances of each table")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help=f"write the {found} there, too (JSON)")
    parser.add_argument("--write", action="store_true", help=f"put the {found} into the model's config.json")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def _calibrate(args: argparse.Namespace) -> int:
    from asr.training.calibrate import main

    return main(args.model, args.dev, limit=args.limit, out=args.out, write=args.write, device=args.device)


def _add_synth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts", nargs="+", metavar="TEXT", help="texts as for 'asr lm build'; each TEXT (A+B: both) gives as much"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.tsv", help="table to write")
    parser.add_argument("--hours", type=float, metavar="H", help="about so much speech")
    parser.add_argument("--sentences", type=_positive, metavar="N", help="so many sentences at most")
    parser.add_argument(
        "--voices", type=_names, metavar="V,...",
        help="engine or engine:voice, as flite,festival:kal_diphone (default: all that are here and are understood)",
    )  # fmt: skip
    parser.add_argument(
        "--known", nargs="+", action="extend", metavar="TABLE", help="training tables; what they lack is spoken first"
    )
    parser.add_argument("--coverage", type=float, metavar="X", help="share of sentences that are chosen for it (0.5)")
    parser.add_argument("--lexicon", metavar="FILE", help="dictionary like CMUdict, or .lex (default: of model en)")
    parser.add_argument("--agreement", type=float, metavar="X", help="share of phones that must be the lexicon's (0.9)")
    for name, what in (("rate", "speed"), ("pitch", "pitch"), ("formants", "formants and pitch, by resampling")):
        parser.add_argument(f"--{name}", type=_range, metavar="LOW-HIGH", help=f"range of factors on {what}")
    parser.add_argument("--speakers", type=_positive, metavar="N", help="settings of pitch and formants per voice (8)")
    parser.add_argument("--words", type=_range, metavar="LOW-HIGH", help="words of a sentence (4-35)")
    parser.add_argument("--longest", type=float, metavar="S", help="longest sentence in seconds at the usual rate (14)")
    parser.add_argument("--bitrate", type=_positive, metavar="N", help="of the Opus files, bit/s (24000)")
    parser.add_argument("--recording-minutes", type=float, metavar="M", help="planned length of a recording (55)")
    parser.add_argument("--seed", type=_not_negative, metavar="N", help="of every random choice (1)")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="engines that run at once (1)")
    parser.add_argument("--quiet", action="store_true", help="do not say what is being done")


def _synth(args: argparse.Namespace) -> int:
    from asr.training import synth

    rest = ("texts", "out", "jobs", "quiet", "run", "debug")
    given = {name: value for name, value in vars(args).items() if name not in rest and value is not None}
    config = synth.config_of([_texts(text) for text in args.texts], **given)
    report = synth.main(config, args.out, jobs=args.jobs, progress=not args.quiet)
    for line in report.lines():
        print(line)
    return 0


def _add_manifests(parser: argparse.ArgumentParser, name: str, help: str, required: bool = True) -> None:
    help = f"{help}: TSV files with columns audio, text, ... or librispeech:PART"
    parser.add_argument(
        name, nargs="+", action="extend", default=None if required else [], required=required, metavar="MANIFEST",
        help=help,
    )  # fmt: skip


# --- asr export -----------------------------------------------------------------------------------------------------


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="en", metavar="NAME|DIR", help="shipped model or model folder (default: en)")
    parser.add_argument(
        "--format", required=True, choices=("onnx", "torch", "int8"),
        help="onnx: ONNX; torch: torch.export (.pt2); both the network with its state; int8: a model folder",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE|DIR", help="what to write")
    parser.add_argument("--steps", type=_positive, default=4, metavar="N", help="steps of 40 ms in a chunk (4)")
    parser.add_argument("--heads", type=_names, default=(), metavar="H,...", help="heads, or all (the search's own)")


def _export(args: argparse.Namespace) -> int:
    from asr.export import main

    return main(args.model, args.format, args.out, args.steps, args.heads)


# --- asr serve ------------------------------------------------------------------------------------------------------


def _add_serve(parser: argparse.ArgumentParser) -> None:
    from server.config import add_arguments  # nothing else of asr knows of the server

    add_arguments(parser)


def _serve(args: argparse.Namespace) -> int:
    from server.cli import serve

    return serve(args)


def _add_client(parser: argparse.ArgumentParser, name: str) -> None:
    from client import cli  # as with the server

    {"mic": cli.add_mic, "stream": cli.add_stream}[name](parser)


def _mic(args: argparse.Namespace) -> int:
    from client.cli import mic

    return mic(args)


def _stream(args: argparse.Namespace) -> int:
    from client.cli import stream

    return stream(args)


def _add_bench_serve(parser: argparse.ArgumentParser) -> None:
    from server.bench_options import add_arguments

    add_arguments(parser)


def _bench_serve(args: argparse.Namespace) -> int:
    import asyncio

    from server.bench import bench

    return asyncio.run(bench(args))


# --- asr lm ---------------------------------------------------------------------------------------------------------


_LM_OUTPUT = "file to write: .arpa[.gz|.xz] ARPA, .kenlm or .bin KenLM's binary, any other name the compact format"


def _add_lm_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts", nargs="+", metavar="TEXT",
        help="text with a sentence a line, or .tsv with a column 'text'; may be compressed; PATH:FIRST-LAST takes some"
        " lines; each TEXT becomes a component of the mixture, A+B one of both files",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=_LM_OUTPUT)
    parser.add_argument("--order", type=_positive, default=3, metavar="N", help="longest n-grams (3)")
    parser.add_argument("--vocabulary-size", type=_positive, default=60_000, metavar="N", help="most frequent words")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help="these words instead, one a line")
    parser.add_argument("--min-count", type=_counts, metavar="N,...", help="leave out rarer n-grams, per order (1)")
    parser.add_argument("--prune-ngrams", type=_positive, metavar="N", help="prune to N n-grams above single words")
    parser.add_argument("--max-bytes", type=_positive, metavar="N", help="prune to N bytes of the file that is written")
    parser.add_argument("--dev", nargs="+", action="extend", metavar="TEXT", help="tune the mixture on these; measure")
    parser.add_argument("--weights", type=_weights, metavar="X,...", help="weights of the mixture, one per TEXT")
    parser.add_argument("--quiet", action="store_true", help="do not say what is being done")


def _lm_build(args: argparse.Namespace) -> int:
    from asr import lm

    report = lm.build(
        [_texts(text) for text in args.texts],
        args.out,
        order=args.order,
        vocabulary_size=args.vocabulary_size,
        vocabulary=args.vocabulary,
        min_count=args.min_count,
        prune_ngrams=args.prune_ngrams,
        max_bytes=args.max_bytes,
        dev=[path for text in args.dev or () for path in _texts(text)],
        weights=args.weights,
        progress=not args.quiet,
    )
    _print_lm(report.path, report.bytes, report.words, report.counts)
    if report.counts != report.full_counts:
        print(f"before pruning: n-grams {_sum(report.full_counts)}")
    if len(report.weights) > 1:
        for text, weight in zip(args.texts, report.weights, strict=True):
            print(f"weight {weight:.3f}  {text}")
    _print_perplexities([(r.text, r.perplexity, r.oov_rate) for r in report.dev])
    return 0


def _add_lm_perplexity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lm", type=Path, metavar="LM", help="language model file of any format")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="texts as for 'asr lm build'")


def _lm_perplexity(args: argparse.Namespace) -> int:
    from asr.lm import Normalizer, TextFile, encode, load

    model, normalizer = load(args.lm), Normalizer()
    rows = []
    for text in args.texts:
        sentences = (s for path in _texts(text) for s in TextFile.parse(path).sentences(normalizer))
        corpus = encode(sentences, model.words)
        unknown = int(corpus.word_frequencies()[model.word_ids["<unk>"]])
        rows.append((text, model.perplexity(corpus), unknown / max(1, corpus.word_count)))
    _print_perplexities(rows)
    return 0


def _add_lm_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lm", type=Path, metavar="IN", help="language model file of any format")
    parser.add_argument("out", type=Path, metavar="OUT", help=_LM_OUTPUT)
    parser.add_argument("--bits", type=int, help="of each value of a compact file (8); 7 are nearly as good")


def _lm_convert(args: argparse.Namespace) -> int:
    from asr import lm

    model = lm.load(args.lm)
    size = lm.save(model, args.out, args.bits)
    _print_lm(args.out, size, len(model.words) - 3, model.counts)
    return 0


def _add_lm_tune(parser: argparse.ArgumentParser) -> None:
    _add_fitting(parser, "what to measure on; each table counts the same", "best setting")


def _lm_tune(args: argparse.Namespace) -> int:
    from asr.training.tune import main

    return main(args.model, args.dev, limit=args.limit, out=args.out, write=args.write, device=args.device)


def _print_lm(path: Path, size: int, words: int, counts: Sequence[int]) -> None:
    print(f"{path}: {size:,} bytes, {words:,} words, n-grams {_sum(counts)}")


def _sum(counts: Sequence[int]) -> str:
    return " + ".join(f"{count:,}" for count in counts)


def _print_perplexities(rows: Sequence[tuple[str, float, float]]) -> None:
    for text, perplexity, unknown in rows:
        print(f"perplexity {perplexity:.1f}, {unknown:.2%} of words unknown  {text}")


# --- asr readable ---------------------------------------------------------------------------------------------------


def _add_readable_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts", nargs="+", metavar="TEXT",
        help="cased and punctuated text, a sentence or clause a line, may be compressed; PATH:FIRST-LAST: some lines",
    )  # fmt: skip


def _add_readable_train(parser: argparse.ArgumentParser) -> None:
    _add_readable_texts(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write (.safetensors)")
    parser.add_argument("--shares", type=_weights, default=[], metavar="X,...", help="take only so much of each TEXT")
    parser.add_argument("--passes", type=float, default=1.0, metavar="X", help="how often to go through the text (1)")
    parser.add_argument("--hidden", type=_positive, default=256, metavar="N", help="size of the network (256)")
    parser.add_argument("--ahead", type=_not_negative, default=4, metavar="N", help="words a decision waits for (4)")
    parser.add_argument("--stems", type=_positive, default=20_000, metavar="N", help="size of the vocabulary (20000)")
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads to use (1)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside the output")


def _readable_train(args: argparse.Namespace) -> int:
    from asr.training.tagger import TaggerConfig, TrainOptions, train

    config = TaggerConfig(hidden=args.hidden, ahead=args.ahead)
    options = TrainOptions(stems=args.stems, passes=args.passes, threads=args.threads)
    train(args.texts, args.out, config, options, args.shares, args.resume)
    return 0


def _add_readable_eval(parser: argparse.ArgumentParser) -> None:
    _add_readable_texts(parser)
    parser.add_argument("--tagger", default="en", metavar="FILE|MODEL", help="tagger's file, or model with one (en)")
    parser.add_argument("--words", type=_positive, default=50_000, metavar="N", help="of each text at most (50000)")


def _readable_eval(args: argparse.Namespace) -> int:
    from asr.training.tagger_eval import main

    return main(args.tagger, args.texts, args.words)


# --- arguments and errors -------------------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _texts(text: str) -> list[str]:
    """``A+B`` as two files that are one text; a file with a plus in its name is left alone."""
    return [text] if os.path.exists(text) else [part for part in text.split("+") if part]


def _counts(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _weights(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0.0 <= value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"must be numbers of at least 0 with commas between them, not '{text}'")
    return values


def _range(text: str) -> tuple[float, float]:
    try:
        low, _, high = text.partition("-")
        return float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be two numbers with a dash between them, not '{text}'") from None


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
