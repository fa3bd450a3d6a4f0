"""Minimum word error training: the expected number of word errors over the search's best texts.

Prabhavalkar et al. 2018, "Minimum word error rate training for attention-based sequence-to-sequence models", for a
network whose words come from a search over a lexicon with a language model: the texts of each row are found by that
search, and weighed by its scores,

    loss = sum over texts of P(text) * errors(text),   P(text) = softmax of (log-probability of its units + the rest)

where the log-probability of the units is CTC's, through which the gradient goes, and the rest (language model, word
scores, priors) is a constant that the search says. So probability moves from texts with more errors than the mean to
those with fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from asr.checkpoint import ModelFolder
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hypothesis import Hypothesis, TimedWord
from asr.errors import ModelError
from asr.training.metrics import edit_distance
from asr.vocabulary import BLANK, Vocabulary

TEXTS = 6
BEAM, THRESHOLD = 80, 10.0
_FOREVER = 1 << 30


def word_search(folder: ModelFolder, head: str, units: Vocabulary) -> BeamSearch:
    """The search of a model folder for a network of the same ``units``, a little narrower than the folder says.

    Raises ModelError where the folder has no lexicon or other units.
    """
    own = folder.load_vocabularies().get(head)
    if own is None or own.to_dict() != units.to_dict():
        raise ModelError(f"{folder.path} has other units than the network: give a model of the same {head}")
    lexicon = folder.load_lexicon(with_g2p=False)
    if not len(lexicon):
        raise ModelError(f"{folder.path} has no lexicon: without one there are no words to count errors of")
    config = folder.config.search
    config = replace(config, beam=min(config.beam, BEAM), threshold=min(config.threshold, THRESHOLD), commit=1.0)
    return BeamSearch(units, lexicon, folder.load_language_model(), config, folder.load_log_priors(head))


class ExpectedWordErrors:
    """``search``: whose lexicon, language model and weights are used; ``texts`` of each row, at most."""

    def __init__(self, search: BeamSearch, texts: int = TEXTS) -> None:
        self.search, self.texts = search, texts
        search.commit_steps = _FOREVER  # alternatives are wanted for the whole row
        self._spelled: dict[str, list[Tensor]] = {}

    def __call__(self, log_probs: Tensor, steps: Tensor, references: Sequence[str]) -> Tensor:
        """Expected word errors of all rows together (). ``log_probs``: (rows, time, units); ``steps``: (rows,);
        ``references``: the words of each row."""
        found = self.alternatives(log_probs, steps)
        rows = [r for r, texts in enumerate(found) for _ in texts]
        if not rows:
            return log_probs.sum() * 0
        flat = [hypothesis for texts in found for hypothesis in texts]
        targets = self.spell(log_probs.detach().float().cpu(), steps.cpu(), rows, flat)
        device, lengths = log_probs.device, torch.tensor([len(t) for t in targets])
        acoustic = -F.ctc_loss(
            log_probs.float()[rows].transpose(0, 1),
            torch.cat(targets).to(device),
            steps.cpu()[rows],
            lengths,
            reduction="none",
            zero_infinity=True,
        )
        errors = [edit_distance(references[r].split(), h.text.split()) for r, h in zip(rows, flat, strict=True)]
        scores = torch.tensor([h.score for h in flat], device=device) + (acoustic - acoustic.detach())
        total = log_probs.new_zeros((), dtype=torch.float32)
        sizes = [len(texts) for texts in found]
        risks = torch.tensor(errors, device=device, dtype=torch.float32)
        for score, risk in zip(scores.split(sizes), risks.split(sizes), strict=True):
            if len(score):
                total = total + (score.softmax(0) * risk).sum()
        return total

    def alternatives(self, log_probs: Tensor, steps: Tensor) -> list[list[Hypothesis]]:
        """The likeliest texts of each row, best first."""
        heard = log_probs.detach().float().cpu().numpy()
        states = [self.search.begin(remember=True) for _ in heard]
        pieces = zip(heard, steps.tolist(), states, strict=True)
        self.search.step_many([(np.ascontiguousarray(row[:count]), state) for row, count, state in pieces])
        return [self.search.alternatives(state, self.texts) for state in states]

    def spell(
        self, log_probs: Tensor, steps: Tensor, rows: Sequence[int], hypotheses: Sequence[Hypothesis]
    ) -> list[Tensor]:
        """The units of each hypothesis: of every word the pronunciation that fits best where the word is."""
        places = dict.fromkeys((r, w) for r, h in zip(rows, hypotheses, strict=True) for w in h.words)
        chosen: dict[tuple[int, TimedWord], Tensor] = {}
        open_places = []
        for place in places:
            said = self._pronunciations(place[1].text)
            if len(said) == 1:
                chosen[place] = said[0]
            else:
                open_places.append(place)
        if open_places:
            chosen.update(zip(open_places, self._fitting(log_probs, steps, open_places), strict=True))
        none = torch.zeros(0, dtype=torch.int64)
        return [torch.cat([none, *(chosen[r, w] for w in h.words)]) for r, h in zip(rows, hypotheses, strict=True)]

    def _fitting(self, log_probs: Tensor, steps: Tensor, places: Sequence[tuple[int, TimedWord]]) -> list[Tensor]:
        """Of words with several pronunciations the one of the greatest CTC probability in the word's steps."""
        tried = [(i, p) for i, (_, w) in enumerate(places) for p in self._pronunciations(w.text)]
        pieces = []
        for r, word in places:
            first, stop = max(0, word.first - 1), min(int(steps[r]), word.last + 2)
            pieces.append(log_probs[r, first:stop])
        lengths = torch.tensor([len(p) for p in pieces])
        padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        number = torch.tensor([i for i, _ in tried])
        losses = F.ctc_loss(
            padded[number].transpose(0, 1),
            torch.cat([p for _, p in tried]),
            lengths[number],
            torch.tensor([len(p) for _, p in tried]),
            blank=BLANK,
            reduction="none",
        )
        best: dict[int, tuple[float, Tensor]] = {}
        for (i, said), loss in zip(tried, losses.tolist(), strict=True):
            if i not in best or loss < best[i][0]:
                best[i] = loss, said
        return [best[i][1] for i in range(len(places))]

    def _pronunciations(self, word: str) -> list[Tensor]:
        if word not in self._spelled:
            self._spelled[word] = [torch.tensor(units) for units in self.search.spell(word)]
        return self._spelled[word]
