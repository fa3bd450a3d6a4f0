"""A tiny model folder with random weights: everything runs without shipped weights, in seconds.

Its network is a real one of few numbers whose emissions are peaky and blank in silence, so that many words come out;
every sequence of its eight phones can be read as words of its lexicon.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr import lm
from asr.checkpoint import LANGUAGE_MODEL, LEXICON, FolderConfig, save_folder
from asr.decoding.endpoint import EndpointConfig
from asr.decoding.search_config import SearchConfig
from asr.features import LogMel
from asr.lexicon import Lexicon
from asr.model import AcousticModel
from asr.model_config import SAMPLE_RATE, FeatureConfig, ModelConfig
from asr.vocabulary import BLANK, CharacterVocabulary, PhoneVocabulary, Vocabulary

PHONES = ("AH", "IY", "OW", "K", "M", "N", "S", "T")
LEXICON_TEXT = """
a AH; e IY; oh OW; k K; mm M; n N; s S; t T; am AH M; an AH N; us AH S; at AH T; eat IY T; own OW N; oat OW T; key K IY;
me M IY; mow M OW; knee N IY; no N OW; know N OW; see S IY; sea S IY; so S OW; sew S OW; tea T IY; toe T OW;
mast M AH S T; meet M IY T; meat M IY T; neat N IY T; note N OW T; seek S IY K; soak S OW K; team T IY M; tone T OW N;
stone S T OW N
"""
RUNNING_MEAN: dict[str, Any] = {
    "running_mean": 0.8,
    "running_mean_s": 0.2,
    "running_mean_memory_s": 0.5,
}  # strong in a short clip
CELLS = ("lstm", "gru", "rnn")
KINDS: dict[str, dict[str, Any]] = {cell: {"cell": cell} for cell in CELLS}  # of networks, as changes of their shape
KINDS |= {f"{cell}, running mean": {"cell": cell, **RUNNING_MEAN} for cell in CELLS}
SENTENCES = ("me see no stone", "see me at sea", "so a team at sea eat meat", "no key no note", "know a tone at sea",
             "meet me at a neat stone", "tea at sea eat meat", "toe a mast oh no", "seek us an oat")  # fmt: skip


def tiny_config(**changes: Any) -> ModelConfig:
    """Three layers, two of them with look-ahead of 4 and 2 steps."""
    shape: dict[str, Any] = {"mels": 16, "channels": 4, "hidden": 24, "layers": 3, "lookahead": (4, 0, 2)}
    heads = {"phones": len(PHONES) + 1, "characters": 29}
    return ModelConfig(**{"heads": heads, **shape, **changes})


def tiny_network(config: ModelConfig, seed: int = 1) -> AcousticModel:
    """Random weights. The heads are laid along the directions in which babble differs most, so that units change often
    and one of them stands out at every step; silence gives blank."""
    torch.manual_seed(seed)
    model = AcousticModel(config).eval().requires_grad_(False)
    model.front_end.mean.fill_(-2.0)
    model.front_end.deviation.fill_(3.0)
    if config.bidirectional:
        return model
    sound = model.norm(model.step_hidden(log_mel(babble(10, seed, pauses=False), config.mels), model.begin())[0][0])
    silence = torch.full((1, 100, config.mels), math.log(FeatureConfig().floor))
    quiet = model.norm(model.step_hidden(silence, model.begin())[0][0, -1])
    _, spread, directions = torch.pca_lowrank(sound, q=8, niter=4)
    whiten = directions / (spread / len(sound) ** 0.5)
    away = (quiet - sound.mean(0)) / (quiet - sound.mean(0)).square().sum()
    for head in model.heads.values():
        assert isinstance(head, torch.nn.Linear)
        head.weight.copy_(5.0 * torch.randn(head.out_features, 8) @ whiten.T)
        head.weight[BLANK] += 20.0 * away
        head.bias.copy_(-head.weight @ sound.mean(0))
        head.bias[BLANK] += 3.0
        head.bias[BLANK] += (head(quiet).max() - head(quiet)[BLANK] + 8.0).clamp_min(0.0)
    return model


def tiny_folder(path: Path, seed: int = 1, **changes: Any) -> Path:
    """Write a model folder; ``changes`` are of the network's shape."""
    features = FeatureConfig(mels=16)
    model = tiny_network(tiny_config(**changes), seed)
    entries: dict[str, list[tuple[str, ...]]] = {}
    for entry in LEXICON_TEXT.split(";"):
        word, *phones = entry.split()
        entries.setdefault(word, []).append(tuple(phones))
    lexicon = Lexicon(entries)
    path.mkdir(parents=True, exist_ok=True)
    lexicon.save(path / LEXICON)
    lm.save(lm.estimate(SENTENCES, order=2, vocabulary=tuple(lexicon)), path / LANGUAGE_MODEL)
    config = FolderConfig(
        model=model.config,
        features=features,
        head="phones",
        name="tiny",
        search=SearchConfig(beam=30, tokens=9, threshold=20.0, lm_weight=0.5),
        endpoint=EndpointConfig(pause_s=0.6, short_pause_s=0.2, long_s=4.0, longest_s=6.0),
    )
    units: dict[str, Vocabulary] = {"phones": PhoneVocabulary.of(PHONES), "characters": CharacterVocabulary()}
    save_folder(path, config, model.state_dict(), units, {}, {})
    return path


def babble(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE, pauses: bool = True) -> NDArray[np.float32]:
    """Noise that changes its spectrum ten times a second, like phones, and pauses now and then (digital silence)."""
    rng = np.random.default_rng(seed)
    total, parts, length = round(seconds * rate), [], 0
    while length < total:
        n = round(rng.uniform(0.04, 0.2) * rate)
        time = np.arange(n) / rate
        tones = [np.sin(2 * np.pi * rng.uniform(100, 3600) * time + rng.uniform(0, 6)) for _ in range(3)]
        parts.append(rng.uniform(0.02, 0.3) * (sum(tones) + rng.normal(0, rng.uniform(0.01, 1), n)) / 3)
        if pauses and rng.random() < 0.15:
            parts.append(np.zeros(round(rng.choice([0.1, 0.3, 1.0]) * rate)))
        length = sum(map(len, parts))
    return np.concatenate(parts)[:total].astype(np.float32)


def log_mel(audio: NDArray[np.float32], mels: int = 16) -> torch.Tensor:
    """(1, frames, mels) of the whole of ``audio``."""
    return LogMel(FeatureConfig(mels=mels))(torch.from_numpy(audio)[None])
