"""Settings of the beam search; apart from the search, so that reading a configuration imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from asr.config import require


@dataclass(frozen=True)
class SearchConfig:
    """Beam search: ``beam`` hypotheses, ``tokens`` best units a step, ``threshold`` in nats below the best. Of these
    units those below ``token_min_logp`` (log-probability, priors taken off; pyctcdecode's name) are not tried either.

    ``lm_weight`` multiplies the language model's log10 probability (KenLM counts in log10), ``word_score`` is added
    per word, ``pronunciation_weight`` times the cost of its pronunciation in the lexicon (nats) is taken off, and
    ``prior_weight`` times the log prior of a unit is subtracted from its emission. ``blank_skip``: a step
    whose blank is likelier than this is left out when the step before it was such a step too (0.999: surely blank; 1:
    never). ``commit``: the next word is stable once hypotheses with this share of the probability have it, and the
    others end (1: once all have it). ``second_share``: what a recurrent language model counts for in the probability
    of a word, where there is one; it judges words of hypotheses at most ``second_margin`` nats behind the best.
    """

    beam: int = 150
    tokens: int = 20
    threshold: float = 25.0
    lm_weight: float = 1.2
    word_score: float = 0.0
    pronunciation_weight: float = 0.5
    prior_weight: float = 0.0
    blank_skip: float = 0.999
    commit: float = 1.0
    second_share: float = 0.0
    second_margin: float = 4.0
    token_min_logp: float = -100.0

    def __post_init__(self) -> None:
        require(1 <= self.beam <= 10_000, f"search.beam must be 1 to 10000, got {self.beam}")
        require(1 <= self.tokens <= 10_000, f"search.tokens must be 1 to 10000, got {self.tokens}")
        require(self.token_min_logp < 0, "search.token_min_logp must be negative")
        require(self.threshold > 0, "search.threshold must be positive")
        require(self.lm_weight >= 0, "search.lm_weight must not be negative")
        require(self.pronunciation_weight >= 0, "search.pronunciation_weight must not be negative")
        require(0.5 <= self.blank_skip <= 1, "search.blank_skip must be 0.5 to 1")
        require(0 <= self.second_share <= 1, "search.second_share must be 0 to 1")
        require(self.second_margin > 0, "search.second_margin must be positive")
        require(0.5 < self.commit <= 1, "search.commit must be above 0.5, and 1 at most")
