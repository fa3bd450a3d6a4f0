"""The state of a beam search: hypotheses as arrays, and the words behind them as a growing tree."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.decoding.compiled import compiled_for
from asr.decoding.hypothesis import Emissions
from asr.model_config import STEP_MS

if TYPE_CHECKING:
    from torch import Tensor

    from asr.decoding.hot_words import HotWords

# Columns of a hypothesis. NODE is in the lexicon tree, UNIT the last one that is not blank, CONTEXT the language
# model's, HOT the hot words', HISTORY the last whole word, FIRST and LAST the steps of the first and last unit of the
# present word (or of the last one, at the root), WORD a word that was just completed and is not in the history yet,
# HEAD the first word behind those that are agreed upon (-1: not said yet).
ROW, NODE, UNIT, CONTEXT, HOT, HISTORY, FIRST, LAST, WORD, HEAD = range(10)
COLUMNS = 10
# Columns of the scores, in nats: of all alignments that end in blank, of those that end in UNIT, and the part of both
# that is an expectation of the language model about the present word.
IN_BLANK, IN_UNIT, LOOK = range(3)
# Columns of a word in the history.
PREVIOUS, NAME, BEGINS, ENDS, DEPTH = range(5)


MOST_STEPS = 2**31 - 2**24  # of a segment: steps are counted in 32 bits
MOST_NATS = 1e12  # either way: scores are sums of some nats a step
KEPT_STEPS = 60_000 // STEP_MS  # emissions that are remembered at least, as long as the segment is that long


class History:
    """Words of all hypotheses: each points to the one before it (-1: none). Grows at the end; compacted now and then.

    ``data``: (size, 5) int32; ``hashes``: (size,) uint64 of the word sequence up to and with the word.
    """

    def __init__(self, data: NDArray[np.int32] | None = None, hashes: NDArray[np.uint64] | None = None) -> None:
        self._data = np.require(np.zeros((64, 5)) if data is None else data, np.int32, ["C", "W"])
        self._hashes = np.require(np.zeros(64) if hashes is None else hashes, np.uint64, ["C", "W"])
        self.size = 0 if data is None else len(data)

    @property
    def data(self) -> NDArray[np.int32]:
        """The entries."""
        return self._data[: self.size]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """The hashes of the entries."""
        return self._hashes[: self.size]

    def append(self, entries: NDArray[np.int32], hashes: NDArray[np.uint64]) -> None:
        """Add entries (n, 4), whose depth is found here, with their hashes (n,)."""
        stop = self._room(len(entries))
        before = entries[:, PREVIOUS]
        self._data[self.size : stop, :4] = entries
        self._data[self.size : stop, DEPTH] = np.where(before >= 0, self._data[before, DEPTH] + 1, 0)
        self._hashes[self.size : stop] = hashes
        self.size = stop

    def record(self, ints: NDArray[np.int32], hashes: NDArray[np.uint64], count: int, first: int) -> None:
        """Add the ``count`` words that hypotheses ``ints`` (n, 10) have just completed (column WORD), and note there
        that they are added. ``hashes``: (n,) of texts with them; ``first``: the column of the words' first steps."""
        self._room(count)
        self.size = _record(ints, hashes, self._data, self._hashes, self.size, first)

    def _room(self, more: int) -> int:
        """Make room for so many more; returns how many there are then."""
        stop = self.size + more
        if stop > len(self._data):
            room = 2 * stop
            self._data, old = np.zeros((room, 5), dtype=np.int32), self.data
            self._data[: len(old)] = old
            self._hashes, older = np.zeros(room, dtype=np.uint64), self.hashes
            self._hashes[: len(older)] = older
        return stop

    def chain(self, entry: int) -> list[int]:
        """The entries from the first word to ``entry``."""
        found = []
        while entry >= 0:
            found.append(entry)
            entry = int(self._data[entry, PREVIOUS])
        return found[::-1]

    def common(self, entries: NDArray[np.int32]) -> int:
        """The last word that all of ``entries`` have in common with everything before it, or -1. Of entries that say
        the same words at different times, one."""
        entries = np.unique(entries)
        if not len(entries) or entries[0] < 0:
            return -1
        data, hashes = self._data, self._hashes
        depth = data[entries, DEPTH]
        shallow = depth.min()
        while True:
            deeper = depth > shallow
            if deeper.any():
                entries = np.unique(np.where(deeper, data[entries, PREVIOUS], entries))
                depth = data[entries, DEPTH]
                continue
            of = hashes[entries]
            if (of == of[0]).all():
                return int(entries[0])
            if shallow == 0:
                return -1
            entries = np.unique(data[entries, PREVIOUS])
            depth = data[entries, DEPTH]
            shallow = depth.min()

    def at_depth(self, entries: NDArray[np.int32], depth: int) -> NDArray[np.int32]:
        """For each entry, the word before it at ``depth``; -1 where the entry is not that deep."""
        return _at_depth(self._data, np.ascontiguousarray(entries), depth)

    def needed(self, entries: NDArray[np.int32], base: int) -> NDArray[np.bool_]:
        """(size,) whether a word is among what ``entries`` need, without words of depth up to ``base``."""
        return _needed(self._data, self.size, np.ascontiguousarray(entries), base)

    def compact(self, entries: NDArray[np.int32], base: int) -> tuple[History, NDArray[np.int32]]:
        """A history of what ``entries`` need, without words of depth up to ``base``; and the entries' new numbers."""
        needed = self.needed(entries, base)
        kept = np.flatnonzero(needed)
        number = np.full(self.size + 1, -1, dtype=np.int32)  # the last one is for -1
        number[kept] = np.arange(len(kept))
        data = self._data[kept]
        data[:, PREVIOUS] = number[data[:, PREVIOUS]]
        data[:, DEPTH] -= base + 1
        return History(data, self._hashes[kept]), number[entries]

    def copy(self) -> History:
        """One that grows on its own."""
        return History(self.data.copy(), self.hashes.copy())

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.data.nbytes + self.hashes.nbytes


@compiled_for("int64(int32[:, ::1], uint64[::1], int32[:, ::1], uint64[::1], int64, int64)")
def _record(
    ints: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    data: NDArray[np.int32],
    texts: NDArray[np.uint64],
    size: int,
    first: int,
) -> int:
    """See :meth:`History.record`."""
    for i in range(len(ints)):
        word, before = ints[i, WORD], ints[i, HISTORY]
        if word < 0:
            continue
        data[size, PREVIOUS], data[size, NAME] = before, word
        data[size, BEGINS], data[size, ENDS] = ints[i, first], ints[i, LAST]
        data[size, DEPTH] = data[before, DEPTH] + 1 if before >= 0 else 0
        texts[size] = hashes[i]
        ints[i, HISTORY], ints[i, WORD] = size, -1
        if ints[i, HEAD] < 0:
            ints[i, HEAD] = word
        size += 1
    return size


@compiled_for("int32[::1](int32[:, ::1], int32[::1], int64)")
def _at_depth(data: NDArray[np.int32], entries: NDArray[np.int32], depth: int) -> NDArray[np.int32]:
    """See :meth:`History.at_depth`."""
    found = np.empty(len(entries), np.int32)
    for i in range(len(entries)):
        entry = entries[i]
        while entry >= 0 and data[entry, DEPTH] > depth:
            entry = data[entry, PREVIOUS]
        found[i] = entry if entry >= 0 and data[entry, DEPTH] == depth else -1
    return found


@compiled_for("bool_[::1](int32[:, ::1], int64, int32[::1], int64)")
def _needed(data: NDArray[np.int32], size: int, entries: NDArray[np.int32], base: int) -> NDArray[np.bool_]:
    """See :meth:`History.needed`."""
    needed = np.zeros(size, np.bool_)
    for entry in entries:
        while entry >= 0 and data[entry, DEPTH] > base and not needed[entry]:
            needed[entry] = True
            entry = data[entry, PREVIOUS]
    return needed


class Block(NamedTuple):
    """Hypotheses that were left behind in one frame. ``words``: (n, 4) as :meth:`History.append` takes them; ``keys``:
    (n, 2) hashes of the better text and of this one; ``behind``: (n,) difference of the scores, at most 0."""

    words: NDArray[np.int32]
    keys: NDArray[np.uint64]
    behind: NDArray[np.float64]


@dataclass(frozen=True)
class Arcs:
    """``texts``: (n,) hashes of the better texts; ``entries``: (n,) of the history, what could have been said instead;
    ``behind``: (n,) nats, at most 0."""

    texts: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    entries: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    behind: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, which: NDArray[np.integer]) -> Arcs:
        """Some of them."""
        return Arcs(self.texts.take(which), self.entries.take(which), self.behind.take(which))


class Text:
    """What a recurrent language model remembers of a text. ``h``, ``c``: (hidden,) of its LSTM, which has read all but
    the ``last`` piece; ``own``: log10 probability of its last word. Once the text is continued: ``after``, h and c when
    the last piece is read, too; ``query`` (embedding,), what the next piece is compared with; ``norm``, what is taken
    off then."""

    __slots__ = ("after", "c", "h", "last", "norm", "own", "query")

    def __init__(self, h: Tensor, c: Tensor, last: int, own: float) -> None:
        self.h, self.c, self.last, self.own = h, c, last, own
        self.after: tuple[Tensor, Tensor] | None = None
        self.query: NDArray[np.float32] | None = None
        self.norm = 0.0

    @property
    def nbytes(self) -> int:
        """Size in bytes, as if it shared nothing."""
        return self.h.nbytes * (4 if self.after else 2) + (self.query.nbytes if self.query is not None else 0)


@dataclass
class SearchState:
    """A stream's search within a segment.

    ``ints`` (hypotheses, 10), ``scores`` (hypotheses, 3) and ``hashes`` (hypotheses,) are never changed in place.
    ``emissions``: what was fed since the segment began, ``steps`` of them. ``frames``: how many of them moved the
    beams. ``skipped``: whether blanks were passed over since the last that did. ``offset``: what was taken from all
    scores to keep them small. ``agreed``: how many of the first words all hypotheses share, for ever; ``committed``:
    those of them that the history has forgotten.
    ``remembers``: whether what recombination leaves behind is kept; ``arcs``: this, and those ``lost`` that are not
    among them yet. ``texts``: by hash what a recurrent language model remembers, at least of what is committed, whose
    hash is ``root``; empty without such a model.
    """

    ints: NDArray[np.int32]
    scores: NDArray[np.float64]
    hashes: NDArray[np.uint64]
    history: History = field(default_factory=History)
    emissions: list[Emissions] = field(default_factory=list)
    steps: int = 0
    frames: int = 0
    skipped: bool = False
    offset: float = 0.0
    agreed: int = 0
    committed: list[tuple[int, int, int]] = field(default_factory=list)
    hot: HotWords | None = None
    lm_scale: float = 1.0
    remembers: bool = False
    arcs: Arcs = field(default_factory=Arcs)
    lost: list[Block] = field(default_factory=list)
    root: int = 0
    texts: dict[int, Text] = field(default_factory=dict)

    @staticmethod
    def empty() -> SearchState:
        """Of a search without hypotheses."""
        return SearchState(np.zeros((0, COLUMNS), np.int32), np.zeros((0, 3)), np.zeros(0, np.uint64))

    def keep(self, emissions: Emissions, forget: bool = True) -> None:
        """Remember ``emissions``; with ``forget``, what lies too far back to be needed again is forgotten."""
        self.emissions.append(np.array(emissions, dtype=np.float32))
        self.steps += len(emissions)
        if forget and len(self.emissions) > 64:
            held = np.concatenate(self.emissions)
            self.emissions = [held[-KEPT_STEPS:].copy() if len(held) > 2 * KEPT_STEPS else held]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        held = sum(e.nbytes for e in self.emissions)
        held += sum(b.words.nbytes + b.keys.nbytes + b.behind.nbytes for b in self.lost)
        held += self.arcs.texts.nbytes + self.arcs.entries.nbytes + self.arcs.behind.nbytes
        held += sum(text.nbytes for text in self.texts.values())
        return self.ints.nbytes + self.scores.nbytes + self.hashes.nbytes + self.history.nbytes + held

    def to_bytes(self) -> bytes:
        """Serialise, without the hot words; :meth:`from_bytes` is the inverse."""
        from safetensors.numpy import save

        arcs = self.settled().arcs
        history, entries = self.history.compact(np.concatenate([arcs.entries, self.ints[:, HISTORY]]), -1)
        ints = self.ints.copy()
        ints[:, HISTORY] = entries[len(arcs) :]
        arrays = {
            "ints": ints,
            "scores": self.scores,
            "hashes": self.hashes.view(np.int64),
            "history": history.data,
            "history_hashes": history.hashes.view(np.int64),
            "arc_texts": arcs.texts.view(np.int64),
            "arc_entries": entries[: len(arcs)],
            "arcs_behind": arcs.behind,
            "committed": np.array(self.committed, dtype=np.int32).reshape(-1, 3),
            "emissions": np.concatenate(self.emissions) if self.emissions else np.zeros((0, 0), np.float32),
            "counts": np.array([self.steps, self.frames, self.skipped, self.remembers, self.agreed], dtype=np.int64),
            "numbers": np.array([self.offset, self.lm_scale]),
        }
        if self.texts:
            root = self.texts[self.root]
            arrays["root"] = np.array([self.root], dtype=np.uint64).view(np.int64)
            arrays["root_state"] = np.stack([root.h.numpy(), root.c.numpy()])
            arrays["root_read"] = np.array([root.last, root.own])
        return save({name: np.ascontiguousarray(a) for name, a in arrays.items()})

    @staticmethod
    def from_bytes(data: bytes) -> SearchState:
        """Read what :meth:`to_bytes` wrote. Raises ValueError for anything else.

        Whether the state fits a search is for that search to say.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            a = load(data)
            state = SearchState(
                _shaped(a["ints"], np.int32, (-1, COLUMNS)),
                _shaped(a["scores"], np.float64, (len(a["ints"]), 3)),
                _shaped(a["hashes"], np.int64, (len(a["ints"]),)).view(np.uint64),
                History(
                    _shaped(a["history"], np.int32, (-1, 5)),
                    _shaped(a["history_hashes"], np.int64, (len(a["history"]),)).view(np.uint64),
                ),
            )
            emissions = _shaped(a["emissions"], np.float32, (-1, a["emissions"].shape[1]))
            state.emissions = [emissions] if len(emissions) else []
            steps, frames, skipped, remembers, state.agreed = _shaped(a["counts"], np.int64, (5,)).tolist()
            state.steps, state.frames, state.skipped, state.remembers = steps, frames, bool(skipped), bool(remembers)
            state.offset, state.lm_scale = _shaped(a["numbers"], np.float64, (2,)).tolist()
            committed = _shaped(a["committed"], np.int32, (-1, 3))
            state.committed = [(w, first, last) for w, first, last in committed.tolist()]
            entries = _shaped(a["arc_entries"], np.int32, (-1,))
            state.arcs = Arcs(
                _shaped(a["arc_texts"], np.int64, (len(entries),)).view(np.uint64),
                entries,
                _shaped(a["arcs_behind"], np.float64, (len(entries),)),
            )
            if "root" in a:
                state._plant(*(a[name] for name in ("root", "root_state", "root_read")))
        except (SafetensorError, KeyError, IndexError) as error:
            raise ValueError(f"the search cannot be read: {error}") from None
        finite = np.isfinite(state.emissions[0]).all() if state.emissions else True
        held = state.scores[:, [IN_BLANK, IN_UNIT]]
        numbers = np.concatenate([state.scores[:, LOOK], held.max(axis=1, initial=-np.inf), [state.offset]])
        if not finite or np.isnan(held).any() or not (np.abs(numbers) < MOST_NATS).all():
            raise ValueError("the search holds numbers that are no scores")
        if not 0 <= frames <= steps <= MOST_STEPS or committed.min(initial=0) < 0 or state.lm_scale not in (0.0, 1.0):
            raise ValueError("the search holds counts that cannot be")
        previous = state.history.data[:, PREVIOUS]
        if not ((previous >= -1) & (previous < np.arange(len(previous)))).all():
            raise ValueError("the search holds words that do not follow each other")
        arcs = state.arcs
        known = (arcs.entries >= 0) & (arcs.entries < len(previous))
        if not (known & (arcs.behind <= 0) & (arcs.behind > -MOST_NATS)).all():
            raise ValueError("the search holds alternatives that cannot be")
        if state.committed and committed[:, 1:].max() > steps:
            raise ValueError("the search holds words from beyond its end")
        return state

    def _plant(self, root: NDArray[Any], held: NDArray[Any], read: NDArray[Any]) -> None:
        """What a recurrent language model remembers of what is committed. Raises ValueError for what cannot be."""
        import torch

        (self.root,) = _shaped(root, np.int64, (1,)).view(np.uint64).tolist()
        h, c = torch.from_numpy(_shaped(held, np.float32, (2, -1)))
        last, own = _shaped(read, np.float64, (2,)).tolist()
        if not np.isfinite(held).all() or not (0 <= last < 2**31 and abs(own) < MOST_NATS):
            raise ValueError("the search holds numbers that no language model remembers")
        self.texts[self.root] = Text(h, c, int(last), own)

    def settled(self) -> SearchState:
        """This state, with what was ``lost`` among its arcs."""
        if self.lost:
            from asr.decoding.lattice import settle

            self.arcs, self.lost = settle(self.history, self.arcs, self.lost), []
        return self

    def heads(self, entries: NDArray[np.int32]) -> NDArray[np.int32]:
        """Column HEAD of hypotheses whose last words are ``entries`` (n,) of the history."""
        there = self.history.at_depth(entries, self.agreed - len(self.committed))
        return np.where(there >= 0, self.history.data[there, NAME], -1) if self.history.size else there

    def clone(self) -> SearchState:
        """A copy that shares nothing that changes."""
        return replace(
            self,
            history=self.history.copy(),
            emissions=list(self.emissions),
            committed=list(self.committed),
            lost=list(self.lost),
            texts=dict(self.texts),
        )

    def array(self, units: int) -> Emissions:
        """All emissions as one array (steps, units)."""
        return np.concatenate(self.emissions) if self.emissions else np.zeros((0, units), np.float32)


def _shaped(array: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """``array`` if it is of the type and shape (-1: any length); ValueError if not."""
    fits = len(array.shape) == len(shape) and all(w in (-1, h) for w, h in zip(shape, array.shape, strict=False))
    if array.dtype != dtype or not fits:
        raise ValueError(f"an array of the search is {array.dtype} {array.shape}")
    return array.copy()
