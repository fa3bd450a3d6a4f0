"""The tables of word error rates of README.md and the model card, from what `asr eval --out` has written.

    asr eval --model en --data dev-*.tsv --out runs/en                        # streaming and offline
    asr eval --model en:medium --streaming --data dev-*.tsv --out runs/medium
    asr eval --model en:low --streaming --data dev-*.tsv --out runs/low
    asr eval --model en --greedy --streaming --data dev-*.tsv --out runs/greedy
    python benchmarks/accuracy.py --reports runs/en runs/medium runs/low runs/greedy [--into README.md ...]

Prints two tables: one row per corpus from the first report; one row per report, with the names and latencies given by
`--rows`. `--into` puts them into Markdown files, between the lines `<!-- accuracy:corpora -->` and `<!-- end -->` and
between `<!-- accuracy:settings -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Mapping[tuple[str, str], Mapping[str, Any]]  # what was measured of a corpus in a mode
CORPORA = {
    "dev-clean": "part of LibriSpeech dev-clean",
    "dev-librispeech": "LibriSpeech, three other readers",
    "dev-commonvoice": "Common Voice v1",
    "dev-speechocean": "Mandarin speakers of English",
}
ROWS = ("`en`=360 ms", "`en:medium`=200 ms", "`en:low`=120 ms", "`en`, greedy letters=360 ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", nargs="+", type=Path, required=True, help="folders that asr eval has written")
    parser.add_argument(
        "--rows", nargs="+", default=ROWS, metavar="NAME=LATENCY", help="of the reports, in their order"
    )
    parser.add_argument("--into", nargs="+", type=Path, default=[], metavar="FILE")
    args = parser.parse_args()
    if len(args.rows) < len(args.reports):
        parser.error("give each report a row")
    reports = [read(folder) for folder in args.reports]
    tables = {"corpora": corpora(reports[0]), "settings": settings(reports, args.rows)}
    for table in tables.values():
        print(table, end="\n\n")
    for path in args.into:
        path.write_text(replaced(path.read_text(encoding="utf-8"), tables), encoding="utf-8")


def read(folder: Path) -> Rows:
    """Of each corpus and mode, what was measured."""
    return {(one["corpus"], one["mode"]): one for one in json.loads((folder / "results.json").read_text("utf-8"))}


def corpora(rows: Rows) -> str:
    """A row for each corpus: words and letters, streaming and offline, and the best paths of the heads."""
    heads = [
        "corpus",
        "WER streaming",
        "95 % interval",
        "WER offline",
        "CER streaming",
        "greedy phone error",
        "greedy character error",
    ]
    lines = []
    for corpus, mode in rows:
        if mode != "streaming":
            continue
        live, whole = rows[corpus, "streaming"], rows[corpus, "offline"]
        word, greedy = live["word"], live["greedy"]
        about = f" ({CORPORA[corpus]})" if corpus in CORPORA else ""
        lines.append(
            [
                f"`{corpus}`{about}",
                percent(word["rate"]),
                f"{percent(word['low'])} to {percent(word['high'])}",
                percent(whole["word"]["rate"]),
                percent(live["character"]["rate"]),
                percent(greedy["phones"]),
                percent(greedy["characters"]),
            ]
        )
    return markdown(heads, lines)


def settings(reports: Sequence[Rows], names: Sequence[str]) -> str:
    """A row for each report: words of all corpora, streaming."""
    there = [corpus for corpus, mode in reports[0] if mode == "streaming"]
    lines = []
    for rows, name in zip(reports, names, strict=False):
        title, _, latency = name.rpartition("=")
        lines.append([title, latency, *(percent(rows[corpus, "streaming"]["word"]["rate"]) for corpus in there)])
    return markdown(["", "algorithmic latency", *there], lines)


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in row) + "|" for row in rows)


def replaced(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with the tables in their places. Raises SystemExit where one has no place."""
    for name, table in tables.items():
        place = rf"(<!-- accuracy:{name} -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(place, lambda m, table=table: m[1] + table + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"there is no one place <!-- accuracy:{name} --> ... <!-- end -->")
    return text


if __name__ == "__main__":
    main()
