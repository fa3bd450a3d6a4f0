"""The end of a recipe: the trained network becomes a recogniser with a language model, and is measured."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from asr import lm
from asr.checkpoint import (
    G2P,
    LANGUAGE_MODEL,
    LEXICON,
    RECURRENT,
    ModelFolder,
    find_model,
    read_config,
    update_config,
)
from asr.errors import LanguageModelError, LexiconError
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.training import evaluate, tune
from asr.training.download import TRIGRAM, data_folder, fetch
from asr.training.manifest import read_manifest
from asr.training.pronunciations import count, put_lexicon, sample
from asr.training.recipe import Recipe

log = logging.getLogger("asr.train")
EVALUATION = "eval"  # folder of results within the run's
LIBRISPEECH = "librispeech"  # as a recipe's language model
_SPECIAL = 3  # <unk>, <s>, </s> come first in a language model


def finish(
    recipe: Recipe,
    out: Path,
    model: Path,
    data: Sequence[str],
    dev: Sequence[str],
    test: Sequence[str],
    given: Path | None,
    device: str,
) -> None:
    """Give the model folder its language model and its lexicon costs, heard in some of ``data``, tune its search on
    ``dev``, measure it on ``test``: `out/eval`.

    ``given``: a language model file in place of the recipe's.
    """
    path = language_model(recipe.language_model, given)
    if path is not None:
        log.info("language model: %s", path)
        add_language_model(model, path)
    if path is not None and recipe.recurrent:
        log.info("recurrent language model: that of %s", recipe.recurrent)
        add_recurrent(model, recipe.recurrent)
    if path is not None and recipe.pronunciation_hours:
        log.info("how often each pronunciation is heard in %g hours", recipe.pronunciation_hours)
        some = sample([u for table in data for u in read_manifest(table)], recipe.pronunciation_hours)
        put_lexicon(model, count(ModelFolder(model), some, out / "cache")[0])
    if path is not None and recipe.tune:
        tune.main(str(model), dev, limit=recipe.tune, out=out / "search.json", write=True, device=device)
    evaluate.main(str(model), test, out / EVALUATION, streaming=True, offline=False, limit=None, device=device)


def language_model(name: str, given: Path | None = None) -> Path | None:
    """The file of a recipe's language model; OpenSLR's is downloaded. Raises LanguageModelError where there is none."""
    if given is not None or not name:
        return given
    if name == LIBRISPEECH:
        return fetch(TRIGRAM, data_folder())
    path = find_model(name).language_model
    if path is None:
        raise LanguageModelError(f"the model {name} has no language model: give a file by --lm")
    return path


def add_language_model(folder: Path, path: Path) -> None:
    """Put a language model (any format, words of any case) into a model folder, and its words into the lexicon.

    What the lexicon does not list is pronounced by its rules and its grapheme-to-phoneme model; words that cannot be
    pronounced are left out of the lexicon, so they are never recognised. Raises LanguageModelError, ModelError.
    """
    model = ModelFolder(folder)
    language_model = in_lower_case(lm.load(path))
    known = model.load_lexicon()
    if len(known):
        lexicon, lost = words_of(language_model, known)
        if lost:
            log.warning("%d words of the language model cannot be pronounced, as '%s'", len(lost), lost[0])
        if not len(lexicon):
            raise LanguageModelError(f"no word of {path} can be pronounced: is it of this language?")
        lexicon.save(folder / LEXICON)
        if lexicon.g2p is not None and not (folder / G2P).exists():
            lexicon.g2p.save(folder / G2P)
    lm.save(language_model, folder / LANGUAGE_MODEL)
    update_config(folder, model.config)


def add_recurrent(folder: Path, name: str) -> None:
    """Put the recurrent language model of another model, by name or folder, into a model folder, with its share and
    margin in that model's search. Raises ModelError, and LanguageModelError where there is none."""
    source = find_model(name)
    if source.load_recurrent() is None:
        raise LanguageModelError(f"the model {name} has no recurrent language model")
    (folder / RECURRENT).write_bytes((source.path / RECURRENT).read_bytes())
    config, theirs = read_config(folder), source.config.search
    search = dataclasses.replace(config.search, second_share=theirs.second_share, second_margin=theirs.second_margin)
    update_config(folder, dataclasses.replace(config, search=search))


def in_lower_case(model: NgramModel) -> NgramModel:
    """The model with words as the recogniser writes them. Raises LanguageModelError where two become one."""
    words = tuple(w if i < _SPECIAL else w.lower() for i, w in enumerate(model.words))
    if len(set(words)) < len(words):
        raise LanguageModelError("the language model tells capitals from small letters: make one of lower-case text")
    return dataclasses.replace(model, words=words)


def words_of(model: NgramModel, known: Lexicon) -> tuple[Lexicon, list[str]]:
    """A lexicon of the model's words, and the words that ``known`` cannot pronounce."""
    derived, lost = {}, []
    words = model.words[_SPECIAL:]
    for word in words:
        try:
            if word not in known:
                derived[word] = known.pronounce(word)
        except LexiconError:
            lost.append(word)
    return known.restrict(words).merge(Lexicon(derived)), lost
