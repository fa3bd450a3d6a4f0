"""Training of the tagger behind readable text (:mod:`asr.readable`): ``asr readable train``.

The text runs through the network in rows, each a contiguous part of it, in windows with the LSTM's state carried on
(truncated back-propagation). A recogniser gives words in segments, and the last words of one are judged without those
that follow; so random cuts are drawn in training (more of them at the ends of sentences, as speakers pause there), and
no word sees beyond a cut. The LSTM itself runs on.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from asr.errors import UsageError
from asr.readable.tagger import Tagger, TaggerConfig
from asr.readable.words import CASES, CLITICS, COMMA, ENDS, FEATURES, MARKS, Words, split_clitic
from asr.training.tagger_text import ANY, Labelled, label, read

BLOCK = 500  # lines that stay together when a text is divided
TEST_SHARE = 0.02
CUT_AT_END, CUT_AT_COMMA, CUT_ELSEWHERE = 0.3, 0.06, 0.005  # chance of a segment's end after a word
FORGET_STEM = 0.03  # words that are shown as unknown ones
RESTART = 0.1  # of a row's windows begin a text
WARM_UP = 100  # steps, a tenth of a short training
FORMS = 2000
FORM_COUNT = 3  # how often a mixed form must occur


@dataclass(frozen=True)
class TrainOptions:
    """``stems``: size of the vocabulary. ``rows``, ``window``: words of one step. ``passes``: over the text."""

    stems: int = 20_000
    rows: int = 64
    window: int = 64
    passes: float = 1.0
    rate: float = 4e-3
    seed: int = 1
    threads: int = 1
    checkpoint_s: float = 120.0


class Network(nn.Module):
    """The tagger as torch trains it; the parameters are those of :class:`asr.readable.tagger.Tagger`."""

    stem: Tensor
    first: Tensor
    last: Tensor
    clitic: Tensor

    def __init__(self, config: TaggerConfig, stems: int) -> None:
        super().__init__()
        self.config = config
        sizes = {"stem": stems + 1, "first": config.buckets, "last": config.buckets, "clitic": len(CLITICS)}
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(0.05 * torch.randn(size, config.embedding)))
        self.lstm = nn.LSTM(config.embedding, config.hidden)
        self.merge = nn.Linear(config.context, config.merged)
        self.head = nn.Linear(config.merged, len(CASES) + len(MARKS))

    def embed(self, features: Tensor) -> Tensor:
        """(..., FEATURES) numbers to (..., embedding)."""
        tables = (self.stem, self.first, self.last, self.clitic)
        parts = [F.embedding(features[..., i], table) for i, table in enumerate(tables)]
        return torch.stack(parts).sum(0)

    def judge(self, x: Tensor, h: Tensor, segment: Tensor) -> Tensor:
        """Logits (n, rows, cases and marks) of the first n words of ``x`` and ``h``, (n + ahead, rows, ...), each
        seeing only what is in its own ``segment``, (n + ahead, rows)."""
        ahead = self.config.ahead
        n = len(x) - ahead
        taps, seen = [x[:n], h[:n]], []
        for k in range(1, ahead + 1):
            same = (segment[k : n + k] == segment[:n]).to(h.dtype)[..., None]
            taps.append(h[k : n + k] * same)
            seen.append(same)
        result: Tensor = self.head(torch.relu(self.merge(torch.cat(taps + seen, -1))))
        return result

    def tagger(self, words: Words) -> Tagger:
        """For use."""
        return Tagger(self.config, words, {name: p.detach().float().numpy() for name, p in self.named_parameters()})


@dataclass
class Encoded:
    """A labelled text in numbers: features (n, FEATURES) int32, cases and marks (n,) int64."""

    features: NDArray[np.int32]
    cases: NDArray[np.int64]
    marks: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.marks)


def divide(
    lines: Iterable[tuple[int, str]], test: bool, test_share: float = TEST_SHARE, share: float = 1.0
) -> Iterator[str]:
    """The blocks of a text that are held out, or the rest of them (of which a share can be enough). Where a line
    belongs is a matter of its number in the file, also when only some lines of it are given."""
    for number, line in lines:
        block, first = divmod(number - 1, BLOCK)
        place = zlib.crc32(f"block {block}".encode()) / 2**32
        held_out = place < test_share
        if held_out == test and (test or place < test_share + share * (1 - test_share)):
            yield line
        if first == 0:
            yield ""


def make_words(texts: Sequence[Labelled], stems: int, buckets: int) -> Words:
    """The most frequent stems, and the mixed forms that occur often enough and are the usual form of their word."""
    counts: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    for text in texts:
        counts.update(text.words)
        forms.update(text.forms.values())
    by_stem: Counter[str] = Counter()
    for word, count in counts.items():
        by_stem[split_clitic(word)[0]] += count
    best: dict[str, str] = {}
    for form, count in forms.most_common():
        if count >= FORM_COUNT and not split_clitic(form)[1]:
            best.setdefault(form.lower(), form)
    ranked = sorted(by_stem, key=lambda stem: (-by_stem[stem], stem))
    return Words.of(ranked[:stems], list(best.values())[:FORMS], buckets)


def encode(text: Labelled, words: Words) -> Encoded:
    """In numbers."""
    known: dict[str, int] = {}
    ids = np.fromiter((known.setdefault(word, len(known)) for word in text.words), np.int32, len(text))
    table = words.encode(list(known)).astype(np.int32)
    return Encoded(table[ids], np.array(text.cases, np.int64), np.array(text.marks, np.int64))


def join(texts: Sequence[Encoded]) -> Encoded:
    """One text after the other."""
    return Encoded(
        np.concatenate([t.features for t in texts]),
        np.concatenate([t.cases for t in texts]),
        np.concatenate([t.marks for t in texts]),
    )


def draw_cuts(marks: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int32]:
    """(n,) number of the segment that each word is in, cut at random."""
    chance = np.full(len(marks), CUT_ELSEWHERE, np.float32)
    chance[marks == COMMA] = CUT_AT_COMMA
    chance[np.isin(marks, ENDS)] = CUT_AT_END
    cuts = rng.random(len(marks), dtype=np.float32) < chance
    return np.concatenate([[0], np.cumsum(cuts)[:-1]]).astype(np.int32)


class Trainer:
    """Trains a network on a text; ``run`` can be stopped and gone on with from its checkpoint."""

    def __init__(self, config: TaggerConfig, options: TrainOptions, words: Words, text: Encoded, out: Path) -> None:
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        self.options, self.words, self.out = options, words, out
        self.network = Network(config, len(words.vocabulary))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), options.rate, (0.9, 0.98), weight_decay=1e-3)
        self.row_length = len(text) // options.rows // options.window * options.window
        if self.row_length < 2 * options.window:
            raise UsageError(f"{len(text)} words are too few to train on: give at least {2 * options.rows} windows")
        self.text = text
        self.steps = max(1, int(options.passes * self.row_length / options.window))
        self.step = 0

    @property
    def checkpoint(self) -> Path:
        """Beside the result."""
        return self.out.with_suffix(".ckpt")

    def resume(self) -> None:
        """Go on from the checkpoint. The rows' states begin anew."""
        saved = torch.load(self.checkpoint, weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]

    def run(self, report_every: int = 100) -> Network:
        """Train to the end; says how it goes on standard error."""
        o, began, saved = self.options, time.monotonic(), time.monotonic()
        per_pass = self.row_length // o.window
        losses: list[tuple[float, float]] = []
        while self.step < self.steps:
            if self.step % per_pass == 0 or not losses:
                self._lay_out(self.step // per_pass)
                memory = self._empty()
            loss, memory = self._train_step(self.step % per_pass, memory)
            losses.append(loss)
            self.step += 1
            if self.step % report_every == 0:
                mean, words = np.mean(losses[-report_every:], 0), len(losses) * o.rows * o.window
                speed = words / (time.monotonic() - began)
                print(
                    f"step {self.step}/{self.steps}: loss of case {mean[0]:.4f}, of marks {mean[1]:.4f};"
                    f" {speed:.0f} words/s",
                    file=sys.stderr,
                    flush=True,
                )
            if time.monotonic() - saved > o.checkpoint_s:
                self._save()
                saved = time.monotonic()
        self._save()
        return self.network

    def _save(self) -> None:
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, self.checkpoint)

    def _lay_out(self, number: int) -> None:
        """Rows with fresh cuts: features (length, rows, FEATURES), targets and segments (length, rows)."""
        self.rng = np.random.default_rng([self.options.seed, number])
        size, rows, text = self.row_length * self.options.rows, self.options.rows, self.text
        begin = int(self.rng.integers(0, len(text) - size + 1))
        part = slice(begin, begin + size)
        segments = draw_cuts(text.marks[part], self.rng)
        # Views: the text is not copied.
        self.features = text.features[part].reshape(rows, -1, FEATURES).swapaxes(0, 1)
        self.cases = text.cases[part].reshape(rows, -1).T
        self.marks = text.marks[part].reshape(rows, -1).T
        self.segments = segments.reshape(rows, -1).T

    def _empty(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c, rows = self.network.config, self.options.rows
        h = torch.zeros(1, rows, c.hidden)
        return h, h, torch.zeros(c.ahead, rows, c.embedding), torch.zeros(c.ahead, rows, c.hidden)

    def _train_step(
        self, number: int, memory: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[tuple[float, float], tuple[Tensor, Tensor, Tensor, Tensor]]:
        o, ahead = self.options, self.network.config.ahead
        at = number * o.window
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self.step + 1) / min(WARM_UP, 1 + self.steps // 10))
            group["lr"] = o.rate * warm * max(0.02, 1 - self.step / self.steps)
        features = torch.from_numpy(self.features[at : at + o.window].astype(np.int64))
        features[..., 0] *= torch.from_numpy(self.rng.random(features.shape[:2], np.float32) >= FORGET_STEM)
        keep = torch.from_numpy((self.rng.random(o.rows) >= RESTART).astype(np.float32))[None, :, None]
        h, c, old_x, old_h = memory
        with torch.autocast("cpu", torch.bfloat16):
            x = self.network.embed(features)
            y, (h, c) = self.network.lstm(x, ((h * keep).to(x.dtype), (c * keep).to(x.dtype)))
            whole_x, whole_h = torch.cat([old_x, x]), torch.cat([old_h.to(y.dtype), y])
            past = max(0, at - ahead)
            missing = ahead - (at - past)  # at the very beginning no words wait
            segment = torch.from_numpy(np.ascontiguousarray(self.segments[past : at + o.window]))
            logits = self.network.judge(whole_x[missing:], whole_h[missing:], segment).float()
        place = slice(past, at + o.window - ahead)
        cases, marks = (torch.from_numpy(np.ascontiguousarray(v[place])).flatten() for v in (self.cases, self.marks))
        flat = logits.flatten(0, 1)
        case_loss = F.cross_entropy(flat[:, : len(CASES)], cases, ignore_index=ANY)
        mark_loss = F.cross_entropy(flat[:, len(CASES) :], marks)
        self.optimizer.zero_grad(set_to_none=True)
        (case_loss + mark_loss).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        tail = x[o.window - ahead :].detach().float(), y[o.window - ahead :].detach().float()
        return (case_loss.item(), mark_loss.item()), (h.detach().float(), c.detach().float(), *tail)


def train(
    texts: Sequence[str],
    out: Path,
    config: TaggerConfig | None = None,
    options: TrainOptions | None = None,
    shares: Sequence[float] = (),
    resume: bool = False,
) -> Tagger:
    """Train a tagger on cased texts (``PATH`` or ``PATH:FIRST-LAST``), a part of each held out, and write it to
    ``out``. ``shares`` of the texts' blocks are enough (1 for those not given). Raises LanguageModelError for texts
    that cannot be read, UsageError when they are too short."""
    config, options = config or TaggerConfig(), options or TrainOptions()
    shares = [*shares, *[1.0] * (len(texts) - len(shares))]
    labelled = [label(divide(read(text), test=False, share=s)) for text, s in zip(texts, shares, strict=True)]
    words = make_words(labelled, options.stems, config.buckets)
    encoded = []
    while labelled:
        encoded.append(encode(labelled.pop(0), words))
    text = join(encoded)
    print(f"{len(text):,} words of text, {len(words.forms):,} mixed forms", file=sys.stderr, flush=True)
    trainer = Trainer(config, options, words, text, out)
    if resume:
        trainer.resume()
    tagger = trainer.run().tagger(words)
    tagger.save(out)
    return tagger
