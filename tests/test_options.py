"""asr.options: what a session chooses, and what it must not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.decoding.endpoint import OFF, EndpointConfig
from asr.decoding.hot_words import DEFAULT_BOOST, HotWord
from asr.errors import AsrError, ConfigError, UsageError
from asr.options import MOST_ALTERNATIVES, StreamOptions


@pytest.mark.parametrize(
    "given_as", [HotWord("radio", 3.0), ("radio", 3.0), ["radio", 3.0], {"text": "radio", "boost": 3.0}]
)
def test_hot_words_come_in_many_forms(given_as: Any) -> None:
    assert StreamOptions().change([given_as]).hotwords == (HotWord("radio", 3.0),)


def test_what_is_not_given_stays() -> None:
    options = StreamOptions().change(["a", {"text": "b"}], {"pause_s": 0.5}, False, 3)
    assert options == StreamOptions(
        (HotWord("a", DEFAULT_BOOST), HotWord("b", DEFAULT_BOOST)), EndpointConfig(pause_s=0.5), False, 3
    )
    assert options.change() == options
    assert options.change(endpointing={"long_s": 9.0}).endpoint == EndpointConfig(pause_s=0.5, long_s=9.0)
    assert options.change(endpointing=False).endpoint == OFF
    assert options.change(endpointing=True).endpoint == EndpointConfig()
    assert options.change(hotwords=()).hotwords == ()


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"hotwords": "radio"}, UsageError, "hotwords must be a list of phrases, not 'radio'"),
        ({"hotwords": b"radio"}, UsageError, "must be a list of phrases"),
        ({"hotwords": {"text": "radio"}}, UsageError, "must be a list of phrases"),
        ({"hotwords": 5}, UsageError, "must be a list of phrases, not 5"),
        ({"hotwords": [5]}, UsageError, "a hot word is a text, or a text with its boost, not 5"),
        ({"hotwords": [("a", 1.0, 2.0)]}, UsageError, "a hot word is a text"),
        ({"hotwords": [{"text": "a", "weight": 1}]}, UsageError, "unknown key 'weight' in a hot word"),
        ({"endpointing": {"pause": 1.0}}, ConfigError, "did you mean 'pause_s'"),
        ({"endpointing": {"pause_s": -1.0}}, ConfigError, "must be 0"),
        ({"endpointing": {"pause_s": float("nan")}}, ConfigError, "must be 0"),
        ({"endpointing": 3}, UsageError, "not 3"),
        ({"endpointing": "off"}, UsageError, "not 'off'"),
        ({"lm": "false"}, UsageError, "lm must be True or False, not 'false'"),
        ({"lm": 0}, UsageError, "lm must be True or False"),
        ({"alternatives": -1}, UsageError, f"0 to {MOST_ALTERNATIVES}"),
        ({"alternatives": MOST_ALTERNATIVES + 1}, UsageError, "alternatives must be"),
        ({"alternatives": True}, UsageError, "alternatives must be"),
        ({"alternatives": 1.0}, UsageError, "alternatives must be"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], error: type[AsrError], reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        StreamOptions().change(**changes)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.builds(HotWord, st.text(), st.floats(-20, 20)), max_size=3),
    st.builds(EndpointConfig, pause_s=st.floats(0, 60)),
    st.booleans(),
    st.integers(0, MOST_ALTERNATIVES),
)
def test_they_survive_json(words: list[HotWord], endpoint: EndpointConfig, lm: bool, alternatives: int) -> None:
    options = StreamOptions(tuple(words), endpoint, lm, alternatives)
    assert StreamOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
