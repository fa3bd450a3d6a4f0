"""A model folder on disk and its parts.

::

    models/<name>/
        config.json           shape of network and features, search settings, SHA-256 of every other file
        acoustic.safetensors  weights, fp16 or int8; global mean and deviation of the features; log priors of units
        units.json            units of every head
        lexicon.lex           words and pronunciations
        g2p.bin               grapheme-to-phoneme model for words outside the lexicon (optional)
        words.lm              word n-gram language model (optional)
        recurrent.lm          recurrent language model, which the search asks about likely words, too (optional)
        tagger.safetensors    case and punctuation of readable text (optional)
        MODEL_CARD.md         data, licences, command, figures
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.config import from_dict, to_dict
from asr.decoding.confidence import ConfidenceConfig, TimesConfig
from asr.decoding.endpoint import EndpointConfig
from asr.decoding.search_config import SearchConfig
from asr.errors import ConfigError, LanguageModelError, LexiconError, ModelError
from asr.lexicon import Lexicon
from asr.model_config import FeatureConfig, ModelConfig
from asr.vocabulary import Vocabulary, vocabulary_from_dict

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from asr.lm import NgramModel
    from asr.lm.recurrent import RecurrentModel
    from asr.model import AcousticModel

FORMAT = 1
CONFIG, WEIGHTS, UNITS, LEXICON, G2P, LANGUAGE_MODEL, RECURRENT, TAGGER = (
    "config.json",
    "acoustic.safetensors",
    "units.json",
    "lexicon.lex",
    "g2p.bin",
    "words.lm",
    "recurrent.lm",
    "tagger.safetensors",
)
SETTING_MARK = ":"
_PRIORS = "log_priors."


@dataclass(frozen=True)
class Setting:
    """Another use of the same weights: ``lookahead`` in place of the model's; ``search``, ``times`` and ``confidence``
    where they differ from the folder's own."""

    lookahead: tuple[int, ...]
    search: SearchConfig | None = None
    times: TimesConfig | None = None
    confidence: ConfidenceConfig | None = None


@dataclass(frozen=True)
class FolderConfig:
    """The content of ``config.json``. ``head`` is the head that the search reads; without ``confidence`` words have
    none; ``settings`` by name: shorter look-aheads of the same network."""

    model: ModelConfig
    features: FeatureConfig
    head: str
    format: int = FORMAT
    name: str = ""
    language: str = "en"
    version: str = "1"
    search: SearchConfig = field(default_factory=SearchConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    times: TimesConfig = field(default_factory=TimesConfig)
    confidence: ConfidenceConfig | None = None
    settings: dict[str, Setting] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for setting in self.settings.values():
            self.model.with_lookahead(setting.lookahead)

    def of_setting(self, name: str) -> FolderConfig:
        """The configuration in one of its settings."""
        chosen = self.settings[name]
        own = {k: v for k in ("search", "times", "confidence") if (v := getattr(chosen, k)) is not None}
        return dataclasses.replace(self, model=self.model.with_lookahead(chosen.lookahead), **own)


class ModelFolder:
    """A model folder whose files have been checked. Raises ModelError saying which file is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.setting = ""  # the model as it is
        self._language_model: Path | None = None  # in place of the folder's own
        self.config = read_config(path)
        for name in (WEIGHTS, UNITS, LEXICON):
            if name not in self.config.files:
                raise ModelError(f"{path / CONFIG} does not list {name}: the model folder is incomplete")
        for name, digest in self.config.files.items():
            if Path(name).name != name:
                raise ModelError(f"{path / CONFIG} lists {name!r}: only files of the folder itself are allowed")
            if _digest(path / name) != digest:
                raise ModelError(
                    f"{path / name} is corrupt or of another version (its SHA-256 differs from "
                    f"{CONFIG}): restore the folder, for a clone with 'git checkout -- {path}'"
                )

    @property
    def name(self) -> str:
        """The model's name, with its setting."""
        return (self.config.name or self.path.name) + (SETTING_MARK + self.setting if self.setting else "")

    @property
    def fingerprint(self) -> str:
        """What tells this model from any other; a stream's state, which holds places in the network, the lexicon and
        the language model, belongs to one."""
        files = [self.config.files.get(name, "") for name in (WEIGHTS, UNITS, LEXICON, LANGUAGE_MODEL)]
        if RECURRENT in self.config.files:
            files.append(self.config.files[RECURRENT])
        if self.setting:
            files.append(str(self.config.model.lookahead))
        shape = self.config.model
        if shape.running_mean:  # no part of the weights
            mean = shape.running_mean_s, shape.running_mean_memory_s, shape.running_mean_loudness
            files.append(str((shape.running_mean, *mean)))
        return hashlib.sha256(" ".join(files).encode()).hexdigest()[:16]

    @property
    def language_model(self) -> Path | None:
        """The n-gram language model, where there is one."""
        if self._language_model:
            return self._language_model
        return self.path / LANGUAGE_MODEL if LANGUAGE_MODEL in self.config.files else None

    def load_language_model(self) -> NgramModel | None:
        """The n-gram language model, or None when the folder has none. Raises LanguageModelError for a broken file."""
        from asr import lm

        return lm.load(self.language_model) if self.language_model else None

    def load_recurrent(self) -> RecurrentModel | None:
        """The recurrent language model, or None where there is none. Raises LanguageModelError for a broken file."""
        if RECURRENT not in self.config.files:
            return None
        from asr.lm import recurrent

        return recurrent.load(self.path / RECURRENT)

    def with_language_model(self, path: str | PathLike[str]) -> ModelFolder:
        """The same model with another language model than its own: a file of any format that :func:`asr.lm.load`
        reads. The folder stays as it is; states of streams belong to one or the other. Raises LanguageModelError where
        there is no such file."""
        other = copy.copy(self)
        other._language_model = Path(path)
        try:
            with other._language_model.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise LanguageModelError(f"cannot read the language model {path}: {error.strerror or error}") from None
        other.config = dataclasses.replace(self.config, files={**self.config.files, LANGUAGE_MODEL: digest})
        return other

    def with_setting(self, name: str) -> ModelFolder:
        """The same model in one of its settings, which are shorter look-aheads; states of streams belong to one.
        Raises ModelError where the model has no such setting."""
        if name not in self.config.settings:
            known = ", ".join(self.config.settings) or "(none)"
            raise ModelError(f"the model {self.name} has no setting '{name}': it has {known}")
        other = copy.copy(self)
        other.setting = name
        other.config = self.config.of_setting(name)
        return other

    def update(self, **values: Any) -> None:
        """Write ``search``, ``times`` or ``confidence`` into ``config.json``, for the setting that this is."""
        config = read_config(self.path)
        if self.setting:
            settings = {**config.settings, self.setting: dataclasses.replace(config.settings[self.setting], **values)}
            update_config(self.path, dataclasses.replace(config, settings=settings))
        else:
            update_config(self.path, dataclasses.replace(config, **values))

    def load_network(self, device: str = "cpu") -> AcousticModel:
        """The acoustic model in float32, ready for inference: without the head that only training uses."""
        import torch

        from asr import int8
        from asr.model import AcousticModel, fewer_taps

        # Not on the meta device: that imports a second's worth of torch.
        model = AcousticModel(dataclasses.replace(self.config.model, intermediate=0), initial=False)
        weights = self._tensors(lambda name: not name.startswith((_PRIORS, "intermediate.")))
        try:
            weights = int8.read_tensors(weights)
            # Copies: tensors of the mapped file would change with it.
            copies = {k: v.to(torch.float32, copy=True) for k, v in weights.items()}
            model.load_state_dict(fewer_taps(copies, self.config.model), assign=True)
        except (RuntimeError, ModelError) as error:
            detail = str(error).splitlines()[-1].strip()
            raise ModelError(f"{self.path / WEIGHTS} does not fit {CONFIG}: {detail}") from None
        return model.requires_grad_(False).eval().to(device)

    def load_log_priors(self, head: str) -> np.ndarray | None:
        """(units,) log priors of a head, or None when the folder has none."""
        priors = self._tensors(lambda name: name == _PRIORS + head).get(_PRIORS + head)
        if priors is None:
            return None
        if tuple(priors.shape) != (self.config.model.heads[head],):
            raise ModelError(f"{self.path / WEIGHTS} does not fit {CONFIG}: {tuple(priors.shape)} priors of '{head}'")
        return priors.float().numpy()

    def load_vocabularies(self, lexicon: Lexicon | None = None) -> dict[str, Vocabulary]:
        """The units of every head."""
        try:
            values = json.loads((self.path / UNITS).read_text(encoding="utf-8"))
            vocabularies = {name: vocabulary_from_dict(v, lexicon) for name, v in values.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.path / UNITS} is corrupt: {error}") from None
        for name, units in self.config.model.heads.items():
            if name not in vocabularies or len(vocabularies[name]) != units:
                raise ModelError(f"{self.path / UNITS} does not fit the head '{name}' of {units} units in {CONFIG}")
        return vocabularies

    def load_lexicon(self, with_g2p: bool = True) -> Lexicon:
        """The words with their pronunciations; the grapheme-to-phoneme model is attached where there is one, unless
        only listed words will be asked for."""
        try:
            lexicon = Lexicon.load(self.path / LEXICON)
            if with_g2p and G2P in self.config.files:
                from asr.g2p import G2P as GraphemeToPhoneme

                lexicon = lexicon.with_g2p(GraphemeToPhoneme.load(self.path / G2P))
        except LexiconError as error:
            raise ModelError(f"{self.path}: {error}") from None
        return lexicon

    def _tensors(self, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path / WEIGHTS, framework="pt") as file:
                names = file.keys()
                return {name: file.get_tensor(name) for name in names if wanted(name)}
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelError(f"{self.path / WEIGHTS} cannot be read: {' '.join(str(error).split())}") from None


def models_folder() -> Path:
    """Where shipped models lie: ``ASR_MODELS`` if set, else ``models`` beside the package."""
    return Path(os.environ.get("ASR_MODELS") or Path(__file__).resolve().parent.parent / "models")


def find_model(model: str | PathLike[str]) -> ModelFolder:
    """A shipped model by name, or any model folder by path; ``MODEL:SETTING`` is one of its settings. Raises ModelError
    naming what exists."""
    path = Path(model)
    before, mark, setting = str(model).rpartition(SETTING_MARK)
    if mark and setting.isidentifier() and not path.exists():
        return find_model(before).with_setting(setting)
    if (path / CONFIG).is_file():
        return ModelFolder(path)
    shipped = models_folder() / path
    if len(path.parts) == 1 and (shipped / CONFIG).is_file():
        return ModelFolder(shipped)
    if path.is_dir():
        raise ModelError(f"{path} is no model folder: it has no {CONFIG}")
    known = sorted(p.parent.name for p in models_folder().glob(f"*/{CONFIG}"))
    raise ModelError(f"there is no model '{model}': give a folder, or one of: {', '.join(known) or '(none shipped)'}")


def read_config(path: Path) -> FolderConfig:
    """Read ``config.json`` of a model folder; needs no torch. Raises ModelError."""
    file = path / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{file} is corrupt: {error}") from None
    if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:  # its keys may be others
        raise ModelError(f"{path} has format {values['format']!r}, this version reads {FORMAT}: update the package")
    try:
        config = from_dict(FolderConfig, values)
    except ConfigError as error:
        raise ModelError(f"{file} is invalid: {error}") from None
    if config.head not in config.model.heads:
        raise ModelError(f"{file}: head '{config.head}' is none of {', '.join(config.model.heads)}")
    if config.features.mels != config.model.mels:
        raise ModelError(f"{file}: features.mels is {config.features.mels}, but model.mels is {config.model.mels}")
    return config


def save_folder(
    path: Path,
    config: FolderConfig,
    weights: Mapping[str, Tensor],
    units: Mapping[str, Vocabulary],
    priors: Mapping[str, Tensor],
    files: Mapping[str, Path],
) -> None:
    """Write a model folder: weights in fp16 (statistics in fp32), units, and copies of ``files`` (name: source)."""
    import shutil

    import torch

    path.mkdir(parents=True, exist_ok=True)
    exact = ("front_end.mean", "front_end.deviation")
    tensors = {k: (v if k in exact else v.to(torch.float16)).detach().cpu().contiguous() for k, v in weights.items()}
    tensors.update({_PRIORS + head: p.float().cpu().contiguous() for head, p in priors.items()})
    _write_weights(path, tensors)
    values: dict[str, Any] = {name: v.to_dict() for name, v in units.items()}
    (path / UNITS).write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, source in files.items():
        if source.resolve() != (path / name).resolve():
            shutil.copyfile(source, path / name)
    update_config(path, config)


def save_int8(folder: ModelFolder, path: Path) -> None:
    """Write a copy of a model folder, all its settings included, whose matrices are integers of 8 bits
    (:mod:`asr.int8`): half the bytes. Every command loads it as any other; it is another model to states of streams.
    Raises ModelError where ``path`` exists."""
    from asr import int8

    tensors = folder._tensors(lambda name: not name.startswith("intermediate."))
    copy_folder(folder, path, int8.write_tensors(tensors))


def copy_folder(folder: ModelFolder, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a copy of a model folder, all its settings and notes included, that holds other weights: ``tensors`` as the
    file has them. Raises ModelError where ``path`` exists."""
    import shutil

    if path.exists():
        raise ModelError(f"{path} exists already: give a folder that is to be made")
    config = read_config(folder.path)
    path.mkdir(parents=True)
    _write_weights(path, {name: t.contiguous() for name, t in tensors.items()})
    notes = [file.name for pattern in ("*.md", "LICENSE*") for file in folder.path.glob(pattern)]
    for name in (*config.files, *notes):
        if name != WEIGHTS:
            shutil.copyfile(folder.path / name, path / name)
    update_config(path, config)


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Readable as the user's mask says; safetensors' own ``save_file`` lets only the owner read."""
    from safetensors.torch import save

    (path / WEIGHTS).write_bytes(save(tensors))


def update_config(path: Path, config: FolderConfig) -> None:
    """Write ``config.json`` with fresh digests of the files that are there."""
    names = [n for n in (WEIGHTS, UNITS, LEXICON, G2P, LANGUAGE_MODEL, RECURRENT, TAGGER) if (path / n).is_file()]
    config = dataclasses.replace(config, files={name: _digest(path / name) for name in names})
    temporary = path / (CONFIG + ".tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path / CONFIG)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the model folder lacks {path.name} ({path}: {error.strerror})") from None
