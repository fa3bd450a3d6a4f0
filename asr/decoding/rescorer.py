"""A recurrent language model within the search: what n-grams cannot say, while the words are still open.

The search gives every text that it has, up to its last whole word, a number (its hash). When a hypothesis that is near
the best one completes a word, the recurrent model says how likely the word is after all that was said before, and the
search takes a mean of this probability and the n-gram model's. So nothing is withdrawn that was stable, as a second
pass over finished segments would have to; and a text is judged once, however often hypotheses complete it.

What is remembered of a text is the LSTM's state (:class:`Text`), made when the text is first continued. Nothing but the
root (what is committed) has to be kept: all else can be computed again from the history, to the bit.

The idea is that of rescoring lattices on the fly (T. Hori et al. 2007, "Efficient WFST-based one-pass decoding with
on-the-fly hypothesis rescoring"; X. Liu et al. 2014 for recurrent models).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.decoding.search_state import NAME, PREVIOUS, SearchState, Text
from asr.inference import PRECISION, Product, product
from asr.lm.recurrent import BOUNDARY, RecurrentModel, log_sum

_LOG10 = math.log(10.0)
_UNSPELLABLE = -6.0  # log10 probability of a word with letters that no piece has

Name = Callable[[SearchState, int], str]


@dataclass(slots=True)
class Asked:
    """A text whose last ``word`` is to be judged. ``key``: of the text; ``before``: of the one without this word, whose
    own last word is ``entry`` of the history (-1: none that is not committed)."""

    state: SearchState
    key: int
    before: int
    entry: int
    word: int


def _up_to(state: SearchState, entry: int) -> Asked:
    """The text up to an entry of the history."""
    history = state.history
    before, word = history.data[entry, [PREVIOUS, NAME]].tolist()
    above = int(history.hashes[before]) if before >= 0 else state.root
    return Asked(state, int(history.hashes[entry]), above, before, word)


@dataclass(slots=True)
class _Job:
    """A text that is read: ``count`` of the ``pieces`` of its last word are judged, ``own`` is their log10 probability,
    and ``at`` is the text up to there (None: the words before it are not known yet)."""

    asked: Asked
    pieces: tuple[int, ...]
    at: Text | None = None
    count: int = 0
    own: float = 0.0
    over: bool = False

    def end(self, text: Text) -> None:
        """Remember what it has come to."""
        self.asked.state.texts[self.asked.key], self.over = text, True


class Rescorer:
    """Immutable, but for words' pieces, which are looked up once. ``name``: what a word's number stands for;
    ``precision``: of products, see :mod:`asr.inference`."""

    def __init__(self, model: RecurrentModel, name: Name, precision: str = PRECISION) -> None:
        self._name, self._pieces = name, model.pieces
        self._known = set("".join(model.pieces.units))
        self._spelled: dict[int, tuple[int, ...]] = {}
        w = {name: torch.from_numpy(weight) for name, weight in model.weights.items()}
        self._size, self._inputs = model.config.hidden, torch.from_numpy(model.inputs)
        self._gates: Product = product(torch.from_numpy(model.gates), None, precision, bounded=True)
        self._out: Product = product(w["out.weight"], w["out.bias"], precision, bounded=True)
        self._all_pieces: Product | None = None
        if not model.config.normalised:
            self._all_pieces = product(w["table"], w["bias"], precision)
        self._table, self._bias = w["table"].numpy(), w["bias"].numpy()

    def begin(self) -> Text:
        """Of no words."""
        zeros = torch.zeros(self._size)
        return Text(zeros, zeros, BOUNDARY, 0.0)

    def fits(self, state: SearchState) -> bool:
        """Whether what a state remembers of texts can be of this model."""
        return state.root in state.texts and all(
            len(text.h) == len(text.c) == self._size and text.last < len(self._bias) for text in state.texts.values()
        )

    def judge(self, asked: Sequence[Asked], known: int) -> NDArray[np.float64]:
        """(asked,) log10 probability of the last word of each text after all those before it. Words from ``known`` on
        are those of a session."""
        jobs: dict[tuple[int, int], _Job] = {}
        for one in asked:
            self._need(one, jobs, known)
        self._read(list(jobs.values()))
        return np.array([one.state.texts[one.key].own for one in asked])

    @torch.inference_mode()
    def said(self, text: Text, words: Iterable[str], ends: bool) -> Text:
        """After a text and more ``words``; ``ends``: and the end of a sentence."""
        pieces = [piece for word in words if self._known.issuperset(word) for piece in self._pieces.encode(word)]
        h, c, last = text.h[None], text.c[None], text.last
        for piece in [*pieces, *([BOUNDARY] if ends else [])]:
            h, c = self._lstm([last], h, c)
            last = piece
        return Text(h[0].clone(), c[0].clone(), last, 0.0)

    def plant(self, state: SearchState, entry: int, known: int) -> None:
        """Make all words up to an entry of the history the root."""
        one = _up_to(state, entry)
        self.judge([one], known)
        text, state.root = state.texts[one.key], one.key
        state.texts[one.key] = Text(
            text.h.clone(), text.c.clone(), text.last, text.own
        )  # no longer a part of its batch

    def _need(self, one: Asked, jobs: dict[tuple[int, int], _Job], known: int) -> None:
        """Note what is not known of a text and of those before it."""
        texts, place = one.state.texts, (id(one.state), one.key)
        if one.key in texts or place in jobs:
            return
        jobs[place] = _Job(one, self._spell(one, known))
        if one.before not in texts:
            self._need(_up_to(one.state, one.entry), jobs, known)

    @torch.inference_mode()
    def _read(self, jobs: list[_Job]) -> None:
        """One piece of every text at a time, as soon as what comes before it is known: few products, of many rows."""
        while jobs:
            ready = []
            for job in jobs:
                job.at = job.at or job.asked.state.texts.get(job.asked.before)
                if job.at and job.pieces:
                    ready.append(job)
                elif job.at:
                    job.end(Text(job.at.h, job.at.c, job.at.last, _UNSPELLABLE))
            if ready:
                self._open([job.at for job in ready if job.at])
                self._advance(ready)
            jobs = [job for job in jobs if not job.over]

    def _open(self, texts: Iterable[Text]) -> None:
        """Read the last pieces of texts, where that has not been done."""
        fresh = list({id(text): text for text in texts if text.query is None}.values())
        if fresh:
            h, c = torch.stack([text.h for text in fresh]), torch.stack([text.c for text in fresh])
            h, c = self._lstm([text.last for text in fresh], h, c)
            for text, h_, c_, query in zip(fresh, h, c, self._queries(h), strict=True):
                text.after, (text.query, text.norm) = (h_, c_), query

    def _advance(self, jobs: Sequence[_Job]) -> None:
        """Judge the next piece of each."""
        pieces = np.array([job.pieces[job.count] for job in jobs])
        query, norm, after = zip(*((job.at.query, job.at.norm, job.at.after) for job in jobs if job.at), strict=True)
        logits = np.einsum("ij,ij->i", np.stack(query), self._table[pieces]) + self._bias[pieces]
        logs = (logits - np.array(norm)) / _LOG10
        for job, piece, log, (h, c) in zip(jobs, pieces.tolist(), logs.tolist(), after, strict=True):
            job.own += log
            job.count += 1
            job.at = Text(h, c, piece, job.own)
            if job.count == len(job.pieces):
                job.end(job.at)

    def _spell(self, one: Asked, known: int) -> tuple[int, ...]:
        pieces = self._spelled.get(one.word) if one.word < known else None
        if pieces is None:
            word = self._name(one.state, one.word)
            pieces = tuple(self._pieces.encode(word)) if self._known.issuperset(word) else ()
            if one.word < known:
                self._spelled[one.word] = pieces
        return pieces

    def _lstm(self, given: Sequence[int], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One piece further; all (rows, hidden). A row's result does not depend on the others."""
        size = self._size
        gates = self._gates.rows(h).add_(self._inputs[given])
        i, f, o = gates[:, : 3 * size].sigmoid_().chunk(3, 1)
        c = torch.addcmul(f * c, i, gates[:, 3 * size :].tanh_())
        return torch.tanh(c).mul_(o), c

    def _queries(self, h: Tensor) -> list[tuple[NDArray[np.float32], float]]:
        """Of each row (hidden,): the vector (embedding,) that pieces are compared with, and the logarithm of the sum
        over all pieces (0 for a model that is normalised as it is)."""
        queries = self._out.rows(h)
        if self._all_pieces is None:
            return [(query, 0.0) for query in queries.numpy()]
        norms = log_sum(self._all_pieces.rows(queries).numpy())
        return list(zip(queries.numpy(), norms.tolist(), strict=True))
