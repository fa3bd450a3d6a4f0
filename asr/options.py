"""What a session may choose for itself; nothing of it touches the shared recogniser."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from asr.config import from_dict, to_dict
from asr.decoding.endpoint import OFF, EndpointConfig
from asr.decoding.hot_words import DEFAULT_BOOST, HotWord
from asr.errors import UsageError

MOST_ALTERNATIVES = 20
HotWordLike = HotWord | str | tuple[str, float] | Mapping[str, Any]


@dataclass(frozen=True)
class StreamOptions:
    """``hotwords``: see :class:`HotWord`. ``endpoint``: where segments end. ``lm``: whether the language model takes
    part. ``alternatives``: how many other texts a segment comes with at most."""

    hotwords: tuple[HotWord, ...] = ()
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    lm: bool = True
    alternatives: int = 0

    def change(
        self,
        hotwords: Iterable[HotWordLike] | None = None,
        endpointing: EndpointConfig | Mapping[str, Any] | bool | None = None,
        lm: bool | None = None,
        alternatives: int | None = None,
        own: EndpointConfig | None = None,
    ) -> StreamOptions:
        """With what is given changed. ``endpointing``: a configuration, some of its keys, False for none at all, or
        True for ``own``, the model's (that of the class where none is given).

        Raises UsageError or ConfigError that names what is wrong.
        """
        new = self
        if hotwords is not None:
            new = replace(new, hotwords=_hot_words(hotwords))
        if isinstance(endpointing, bool):
            new = replace(new, endpoint=(own or EndpointConfig()) if endpointing else OFF)
        elif isinstance(endpointing, EndpointConfig):
            new = replace(new, endpoint=endpointing)
        elif endpointing is not None:
            if not isinstance(endpointing, Mapping):
                raise UsageError(f"endpointing is a configuration, some of its keys or False, not {endpointing!r}")
            merged = {**to_dict(new.endpoint), **endpointing}
            new = replace(new, endpoint=from_dict(EndpointConfig, merged, "endpointing"))
        if lm is not None:
            if not isinstance(lm, bool):
                raise UsageError(f"lm must be True or False, not {lm!r}")
            new = replace(new, lm=lm)
        if alternatives is not None:
            if (
                isinstance(alternatives, bool)
                or not isinstance(alternatives, int)
                or not 0 <= alternatives <= MOST_ALTERNATIVES
            ):
                raise UsageError(f"alternatives must be 0 to {MOST_ALTERNATIVES}, not {alternatives!r}")
            new = replace(new, alternatives=alternatives)
        return new

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; :meth:`from_dict` is the inverse."""
        words = [{"text": h.text, "boost": h.boost} for h in self.hotwords]
        return {"hotwords": words, "endpoint": to_dict(self.endpoint), "lm": self.lm, "alternatives": self.alternatives}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> StreamOptions:
        """Raises UsageError or ConfigError for values that :meth:`change` would not take."""
        return StreamOptions().change(
            values["hotwords"], dict(values["endpoint"]), values["lm"] is True, values["alternatives"]
        )


def _hot_words(values: Iterable[HotWordLike]) -> tuple[HotWord, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UsageError(f"hotwords must be a list of phrases, not {values!r}: put it in brackets")
    return tuple(_hot_word(value) for value in values)


def _hot_word(value: HotWordLike) -> HotWord:
    if isinstance(value, HotWord):
        return value
    if isinstance(value, str):
        return HotWord(value)
    if isinstance(value, Mapping):
        if unknown := set(value) - {"text", "boost"}:
            raise UsageError(f"unknown key {sorted(map(str, unknown))[0]!r} in a hot word: use text and boost")
        return HotWord(value.get("text", ""), value.get("boost", DEFAULT_BOOST))
    if isinstance(value, tuple | list) and len(value) == 2:
        return HotWord(value[0], value[1])
    raise UsageError(f"a hot word is a text, or a text with its boost, not {value!r}")


# --- as a command line gives them -----------------------------------------------------------------------------------

_FILE_ENDINGS = (".txt", ".tsv", ".csv", ".list", ".lst")


def from_arguments(
    hotwords: Iterable[str] | None = None,
    endpointing: str | None = None,
    lm: bool = True,
    alternatives: int | None = None,
) -> dict[str, Any]:
    """Keyword options of :meth:`asr.recognizer.Recognizer.stream` from texts; those that are not given are left out.

    ``hotwords``: phrases, and files with a phrase a line, each with a boost behind a tab or a colon if it has one.
    ``endpointing``: "off", "on" (the model's own), or KEY=SECONDS with commas between. Raises UsageError.
    """
    options: dict[str, Any] = {}
    if hotwords:
        options["hotwords"] = tuple(word for argument in hotwords for word in _phrases(argument))
    if endpointing is not None:
        options["endpointing"] = _endpointing(endpointing)
    if not lm:
        options["lm"] = False
    if alternatives is not None:
        options["alternatives"] = alternatives
    StreamOptions().change(alternatives=alternatives)
    return options


def _phrases(argument: str) -> Iterator[HotWord]:
    """Of a phrase itself, or of the lines of a file; empty lines and those that begin with # are none."""
    path = Path(argument)
    if not path.is_file():
        if len(path.parts) > 1 or path.suffix.lower() in _FILE_ENDINGS:
            raise UsageError(f"there is no file {argument} with hot words: check the name, or give a phrase")
        yield _phrase(argument, f"hot word '{argument}'")
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the hot words in {argument}: {reason}") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _phrase(line, f"{argument}, line {number}")


def _phrase(text: str, where: str) -> HotWord:
    phrase, mark, boost = text.rpartition("\t" if "\t" in text else ":")
    if not mark:
        return HotWord(text.strip())
    try:
        return HotWord(phrase.strip(), float(boost))
    except ValueError:
        raise UsageError(f"{where}: '{boost.strip()}' is no boost: write a number, or only the phrase") from None


def _endpointing(text: str) -> bool | dict[str, float]:
    if text.strip().lower() in ("on", "off"):
        return text.strip().lower() == "on"
    known, values = [f.name for f in fields(EndpointConfig)], {}
    for part in text.split(","):
        key, mark, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"unknown endpointing '{key}': use off, on, or KEY=SECONDS (did you mean '{near}'?)")
        try:
            values[key] = float(value)
        except ValueError:
            what = f"'{value}' is no number" if mark else "it has no value"
            raise UsageError(f"endpointing '{key}': {what}: write {key}=SECONDS") from None
    return values
