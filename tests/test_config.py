"""asr.config: from_dict and to_dict are inverse, and every wrong key or value is named."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.config import from_dict, require, to_dict
from asr.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    size: int
    dropout: float = 0.0


@dataclass(frozen=True)
class Network:
    layer: Layer
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    kernel: tuple[int, int] = (3, 3)
    layers: tuple[Layer, ...] = ()
    head: Layer | None = None
    weights: dict[str, float] = field(default_factory=dict)
    name: str = ""
    cut: int | str = 0
    frozen: bool = False
    extra: Any = None

    def __post_init__(self) -> None:
        require(all(k > 0 for k in self.kernel), f"'kernel' must be positive, got {self.kernel}")


layers = st.builds(Layer, st.integers(), st.floats(allow_nan=False))


@given(
    st.builds(
        Network,
        layer=layers,
        cell=st.sampled_from(["lstm", "gru", "rnn"]),
        kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        layers=st.lists(layers, max_size=3).map(tuple),
        head=st.none() | layers,
        weights=st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False)),
        name=st.text(),
        cut=st.integers() | st.text(),
        frozen=st.booleans(),
    )
)
def test_round_trip_through_json(config: Network) -> None:
    plain = to_dict(config)
    read = json.loads(json.dumps(plain))
    assert read == plain
    assert from_dict(Network, read) == config


def test_integers_are_numbers_too() -> None:
    dropout = from_dict(Layer, {"size": 1, "dropout": 1}).dropout
    assert dropout == 1.0 and isinstance(dropout, float)


GOOD = {"layer": {"size": 4}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cel": "gru"}, r"unknown key 'cel': did you mean 'cell'\?"),
        ({"layer": {"size": 4, "dropuot": 0.1}}, r"unknown key 'layer.dropuot': did you mean 'dropout'\?"),
        ({"layer": {}}, "missing key 'layer.size'"),
        ({"layer": 4}, "layer: expected a table of keys, got int"),
        ({"layer": {"size": "4"}}, "'layer.size' must be of type int, got '4'"),
        ({"layer": {"size": True}}, "'layer.size' must be of type int, got True"),
        ({"layer": {"size": 4.0}}, "'layer.size' must be of type int, got 4.0"),
        ({"cell": "lsmt"}, r"'cell' is 'lsmt': choose one of lstm, gru, rnn \(did you mean 'lstm'\?\)"),
        ({"kernel": [3]}, "'kernel' must have 2 items, got 1"),
        ({"kernel": 3}, "'kernel' must be a list, got 3"),
        ({"kernel": [3, 0]}, "'kernel' must be positive"),
        ({"layers": [{"size": 1}, {"size": None}]}, r"'layers\[1\].size' must be of type int, got None"),
        ({"head": {"size": "x"}}, "'head.size' must be of type int"),
        ({"weights": [1]}, r"'weights' must be a table of keys, got \[1\]"),
        ({"weights": {"a": "b"}}, "'weights.a' must be of type float, got 'b'"),
        ({"cut": 1.5}, "'cut' must be of type int, got 1.5"),
        ({"frozen": 1}, "'frozen' must be of type bool, got 1"),
        ({"name": None}, "'name' must be of type str, got None"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Network, GOOD | change)
    assert "\n" not in str(caught.value)


def test_missing_and_prefix() -> None:
    with pytest.raises(ConfigError, match=r"missing key 'model\.layer'"):
        from_dict(Network, {}, "model")
    with pytest.raises(ConfigError, match="Network: expected a table of keys, got list"):
        from_dict(Network, [])  # type: ignore[arg-type]


def test_a_union_takes_the_option_that_fits() -> None:
    assert from_dict(Network, GOOD | {"cut": "auto"}).cut == "auto"
    assert from_dict(Network, GOOD | {"head": None}).head is None
    assert from_dict(Network, GOOD | {"extra": [1, {"a": 2}]}).extra == [1, {"a": 2}]
