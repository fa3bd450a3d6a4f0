"""The command line of `asr bench serve`; apart from the rest, so that `asr --help` loads no recogniser."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `asr bench serve`."""
    parser.add_argument("files", nargs="*", type=Path, help="speech to send (default: the included clips)")
    parser.add_argument("--server", default="", help="address of a running server (ws://host:port); default: start one")
    parser.add_argument("--token", default="", help="for a server that wants one")
    parser.add_argument("--model", default="en", help="the server's model, for the offline texts")
    parser.add_argument("--search", choices=("beam", "greedy"), default="beam")
    parser.add_argument("--precision", default="fp16", help="fp16, bf16, int8, w8a8 or fp32")
    parser.add_argument("--streams", type=int, nargs="+", help="exactly so many, instead of looking for the most")
    parser.add_argument("--first", type=int, default=10, help="where the search for the most begins")
    parser.add_argument("--most", type=int, default=400, help="and where it ends at the latest")
    parser.add_argument("--chunk-ms", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0, help="of speech in every stream")
    parser.add_argument("--limit-ms", type=float, default=300.0, help="of the 95th percentile of lag")
    parser.add_argument("--cores", type=int, nargs=2, metavar=("ENGINE", "SERVER"), help="pin the started server so")
    parser.add_argument("--serve-options", nargs="*", default=[], help="further options of the started server")
    parser.add_argument("--json", default="", help="write all numbers here")
    parser.add_argument("--plot", default="", help="write a plot here (PNG)")
