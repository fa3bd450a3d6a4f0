"""Training of :mod:`asr.lm.recurrent`, with torch.

    python -m asr.lm.recurrent_train books.txt.xz=0.5 modern.txt.xz=0.4 train.tsv=0.1 -o second.lm --words 120e6

Texts are mixed by shares of the tokens: blocks of lines are drawn from each, so a small text comes often. They run
through the network in rows, in windows with the LSTM's state carried on (truncated back-propagation). Now and then the
boundary between two lines is left out, since segments of a recogniser begin and end anywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from asr.errors import LanguageModelError
from asr.lm.build import TextFile
from asr.lm.recurrent import BOUNDARY, RecurrentConfig, RecurrentModel, load, save
from asr.lm.text import Normalizer
from asr.training.muon import Muon, matrices_of
from asr.vocabulary import BpeVocabulary

BLOCK = 50  # lines that stay together
PIECE_SAMPLE = 200_000  # lines that pieces are learned from
RARE = 5  # words seen less often in them teach no pieces
NO_BOUNDARY = 0.2  # of the lines are not set apart from the next one
WARM_UP = 200
CLOSE = 0.35  # nats by which logarithms may miss, on the mean, to be taken for those of probabilities


@dataclass(frozen=True)
class TrainOptions:
    """``words``: how many are shown in all. ``rows``, ``window``: pieces of one step. ``normalise``: weight of the
    second of :func:`losses_of`. ``hold``: every so many-th block of each text is for the report alone. ``save``: where
    the model so far is written every ``save_s``."""

    pieces: int = 3000
    words: float = 40e6
    rows: int = 64
    window: int = 48
    rate: float = 3e-3
    dropout: float = 0.1
    normalise: float = 0.5
    hold: int = 200
    seed: int = 1
    threads: int = 1
    report_s: float = 30.0
    save_s: float = 300.0
    save: Path | None = None


class Network(nn.Module):
    """The model as torch trains it; its parameters are those of :class:`asr.lm.recurrent.RecurrentModel`."""

    def __init__(self, config: RecurrentConfig, pieces: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(pieces, config.embedding) * config.embedding**-0.5)
        self.lstm = nn.LSTM(config.embedding, config.hidden, batch_first=True)
        self.out = nn.Linear(config.hidden, config.embedding)
        self.bias = nn.Parameter(torch.zeros(pieces))
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``ids``: (rows, window) pieces. Returns logits (rows, window, pieces) of those that follow, and the state."""
        y, state = self.lstm(self.dropout(self.table[ids]), state)
        return F.linear(self.dropout(self.out(self.dropout(y))), self.table, self.bias), state


@dataclass(frozen=True)
class Mixture:
    """Texts as pieces: ``blocks`` (each (pieces,) int16 or int32) of every text, and the ``shares`` of the texts."""

    blocks: tuple[tuple[NDArray[np.integer], ...], ...]
    shares: tuple[float, ...]

    def draw(self, rng: np.random.Generator) -> Iterator[NDArray[np.integer]]:
        """Blocks without end; each text's pieces come by its share, all of its blocks once before one comes again.
        Which text begins is left to chance, so that rows do not read the same one at the same time."""
        longest = max(len(block) for blocks in self.blocks for block in blocks)
        given = np.array(self.shares) * rng.random(len(self.blocks)) * longest * len(self.blocks)
        orders: list[list[int]] = [[] for _ in self.blocks]
        while True:
            k = int(np.argmin(given / np.maximum(self.shares, 1e-9)))
            if not orders[k]:
                orders[k] = rng.permutation(len(self.blocks[k])).tolist()
            block = self.blocks[k][orders[k].pop()]
            given[k] += len(block)
            yield block


def read_lines(spec: str, normalizer: Normalizer) -> list[str]:
    """Normalised lines of a text (see :class:`asr.lm.build.TextFile`)."""
    lines = list(TextFile.parse(spec).sentences(normalizer))
    if not lines:
        raise LanguageModelError(f"the text {spec} holds no words")
    return lines


def learn_pieces(texts: Sequence[Sequence[str]], size: int) -> BpeVocabulary:
    """Byte pairs from lines that are taken evenly from all texts; rare words are left out (they cost much time)."""
    each = max(1, PIECE_SAMPLE // len(texts))
    lines = [line for text in texts for line in text[:: max(1, len(text) // each)][:each]]
    counts: dict[str, int] = {}
    for line in lines:
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
    rare = RARE if len(lines) > 10_000 else 1
    return BpeVocabulary.train((word for line in lines for word in line.split() if counts[word] >= rare), size)


def cut(lines: Sequence[str], pieces: BpeVocabulary, rng: np.random.Generator) -> tuple[NDArray[np.integer], ...]:
    """Blocks of a text as pieces, a boundary after most lines. Lines with letters that no piece has are left out."""
    known = set("".join(pieces.units))
    blocks: list[NDArray[np.integer]] = []
    for first in range(0, len(lines), BLOCK):
        ids: list[int] = []
        for line in lines[first : first + BLOCK]:
            if known.issuperset(line.replace(" ", "")):
                ids += pieces.encode(line)
                if rng.random() >= NO_BOUNDARY:
                    ids.append(BOUNDARY)
        if ids:
            blocks.append(np.array(ids, dtype=np.int32 if len(pieces) > 32_767 else np.int16))
    return tuple(blocks)


def windows(mixture: Mixture, rows: int, window: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """(rows, window + 1) pieces without end; each row goes on where it stopped, its first piece is its last one."""
    streams = [mixture.draw(np.random.default_rng([seed, row])) for row in range(rows)]
    left = [np.array([BOUNDARY]) for _ in range(rows)]
    while True:
        batch = np.empty((rows, window + 1), dtype=np.int64)
        for row, stream in enumerate(streams):
            while len(left[row]) <= window:
                left[row] = np.concatenate([left[row], next(stream)])
            batch[row], left[row] = left[row][: window + 1], left[row][window:]
        yield batch


def train(
    texts: Sequence[Sequence[str]],
    shares: Sequence[float],
    config: RecurrentConfig,
    options: TrainOptions,
    pieces: BpeVocabulary | None = None,
    init: RecurrentModel | None = None,
) -> RecurrentModel:
    """A model of normalised lines. ``shares``: of the texts; ``pieces``: where they are not to be learned from these;
    ``init``: a model to go on from, of the same sizes, whose pieces are kept. Progress goes to standard error. Raises
    LanguageModelError for one of other sizes."""
    if init and (init.config.embedding, init.config.hidden) != (config.embedding, config.hidden):
        sizes = f"vectors of {init.config.embedding} and {init.config.hidden} units"
        raise LanguageModelError(f"the model to go on from has {sizes}: ask for these")
    pieces = init.pieces if init else pieces
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(options.seed)
    pieces = pieces or learn_pieces(texts, options.pieces)
    blocks = [cut(text, pieces, rng) for text in texts]
    held = [b[options.hold // 2 :: options.hold] for b in blocks]
    kept = [tuple(x for i, x in enumerate(b) if i % options.hold != options.hold // 2) for b in blocks]
    words = sum(len(line.split()) for text in texts for line in text)
    per_word = sum(len(b) for part in blocks for b in part) / max(1, words)
    steps = max(1, int(options.words * per_word / (options.rows * options.window)))
    print(
        f"{words} words, {len(pieces)} pieces, {per_word:.2f} pieces a word, {steps} steps", file=sys.stderr, flush=True
    )
    network = Network(config, len(pieces), options.dropout)
    if init:
        network.load_state_dict({name: torch.from_numpy(w) for name, w in init.weights.items()})
    optimizers = optimizers_of(network, options.rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_at(step, steps)) for o in optimizers]
    state, losses = None, []
    began = shown = saved = time.monotonic()
    network.train()
    for step, batch in zip(range(steps), windows(Mixture(tuple(kept), tuple(shares)), options.rows, options.window,
                                                 options.seed), strict=False):  # fmt: skip
        ids = torch.from_numpy(batch)
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = network(ids[:, :-1], state)
        state = (state[0].detach(), state[1].detach())
        loss, unnormalised = losses_of(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        network.zero_grad()
        (loss + options.normalise * unnormalised).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append((loss.item(), unnormalised.item()))
        if time.monotonic() - shown > options.report_s or step == steps - 1:
            shown = time.monotonic()
            mean = np.mean(losses[-200:], axis=0)
            speed = f"loss {mean[0]:.3f} normaliser {mean[1] ** 0.5:.2f} {(shown - began) / (step + 1):.3f} s a step"
            print(f"step {step + 1}/{steps} {speed}", file=sys.stderr, flush=True)
            if options.save and shown - saved > options.save_s:
                saved = shown
                save(exported(network, config, pieces), options.save)
    model = exported(network, config, pieces)
    for k, part in enumerate(held):
        if part:
            print(f"held-out part of text {k + 1}: {perplexity(model, part):.1f} a piece", file=sys.stderr)
    return settled(model, [block for part in held for block in part])


def settled(model: RecurrentModel, blocks: Sequence[NDArray[np.integer]]) -> RecurrentModel:
    """The same model, its logarithms moved so that on the mean over ``blocks`` they are those of probabilities; it is
    ``normalised`` where they then miss by less than :data:`CLOSE` (root of the mean square)."""
    sums = np.concatenate([model.piece_logits(block)[1] for block in blocks] or [np.zeros(0)])
    if not len(sums):
        return model
    weights = {**model.weights, "bias": model.weights["bias"] - np.float32(sums.mean())}
    print(f"normaliser on held-out text: {sums.mean():.3f}, give or take {sums.std():.3f}", file=sys.stderr, flush=True)
    return RecurrentModel(replace(model.config, normalised=bool(sums.std() < CLOSE)), model.pieces, weights)


def losses_of(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, and the mean square of the logarithm by which the network's numbers miss to be probabilities:
    where it is small, nobody has to sum over all pieces (J. Devlin et al. 2014, "Fast and robust neural network joint
    models for statistical machine translation", ACL)."""
    normaliser = logits.logsumexp(1)
    chosen = logits.gather(1, wanted[:, None])[:, 0]
    return (normaliser - chosen).mean(), normaliser.square().mean()


def optimizers_of(network: Network, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the table and its second use, AdamW for all else."""
    groups = matrices_of(network)
    matrices = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in network.parameters() if id(p) not in matrices]
    return [
        Muon(groups, lr=rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up, then a falling half cosine."""
    warm = min(WARM_UP, max(1, steps // 10))
    return min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps))) + 1e-3)


def exported(network: Network, config: RecurrentConfig, pieces: BpeVocabulary) -> RecurrentModel:
    """The trained weights."""
    return RecurrentModel(
        config, pieces, {name: w.detach().float().numpy() for name, w in network.state_dict().items()}
    )


def perplexity(model: RecurrentModel, blocks: Iterable[NDArray[np.integer]]) -> float:
    """Per piece, boundaries included."""
    total, count = 0.0, 0
    for block in blocks:
        rows = model.piece_log_probs(block)
        total, count = total + float(rows.sum()), count + len(rows)
    return float(np.exp(-total / max(1, count)))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="TEXT=SHARE")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--words", type=float, default=TrainOptions.words, help="to show in all (%(default)g)")
    parser.add_argument("--pieces", type=int, default=TrainOptions.pieces)
    parser.add_argument("--embedding", type=int, default=RecurrentConfig.embedding)
    parser.add_argument("--hidden", type=int, default=RecurrentConfig.hidden)
    parser.add_argument("--rows", type=int, default=TrainOptions.rows)
    parser.add_argument("--rate", type=float, default=TrainOptions.rate)
    parser.add_argument("--dropout", type=float, default=TrainOptions.dropout)
    parser.add_argument("--init", type=Path, help="a model to go on from: its pieces and sizes are taken")
    parser.add_argument("--threads", type=int, default=TrainOptions.threads)
    args = parser.parse_args(argv)
    options = TrainOptions(
        args.pieces, args.words, args.rows, rate=args.rate, dropout=args.dropout, threads=args.threads, save=args.output
    )
    normalizer = Normalizer()
    names, shares = zip(*(spec.rpartition("=")[::2] for spec in args.texts), strict=True)
    texts = [read_lines(name, normalizer) for name in names]
    init = load(args.init) if args.init else None
    config = replace(init.config, normalised=False) if init else RecurrentConfig(args.embedding, args.hidden)
    model = train(texts, [float(s) for s in shares], config, options, init=init)
    print(f"{args.output}: {save(model, args.output):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
