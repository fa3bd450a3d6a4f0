"""What a session may choose for itself; nothing of it touches the shared recogniser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
    ) -> StreamOptions:
        """With what is given changed. ``endpointing``: a configuration, some of its keys, or False for none at all.

        Raises UsageError or ConfigError that names what is wrong.
        """
        new = self
        if hotwords is not None:
            new = replace(new, hotwords=_hot_words(hotwords))
        if isinstance(endpointing, bool):
            new = replace(new, endpoint=EndpointConfig() if endpointing else OFF)
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
