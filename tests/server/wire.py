"""What the protocol tests share: a context with fixed names, seconds of audio, and messages read back."""

import json
import re
from typing import Any

from fake_engine import FakeInfo, drive
from hypothesis import strategies as st

from asr.errors import ERRORS
from server.limits import Limits
from server.protocols import Adapter, Context, adapter_for
from server.protocols.actions import Close, Send

SESSION = "00112233445566778899aabbccddeeff"


def context(resumable: bool = True, **limits: Any) -> Context:
    return Context(FakeInfo(), Limits(**limits), SESSION, "s3cret", "2026-11-21T08:00:00Z", resumable)


def adapter(path: str, query: str = "", **limits: Any) -> Adapter:
    return adapter_for(path, query, context(**limits))


def audio(seconds: float, rate: int = 16000, width: int = 2) -> bytes:
    return b"\x01\x00" * (round(seconds * rate) * width // 2)


def messages(actions: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(a.text) for a in actions if isinstance(a, Send)]


def closes(actions: list[Any]) -> list[Close]:
    return [a for a in actions if isinstance(a, Close)]


def talk(adapter: Adapter, *said: str | bytes) -> list[Any]:
    """Everything that comes back from a conversation with the fake engine."""
    out, session = drive(adapter, adapter.begin(0.0))
    for message in said:
        take = adapter.text if isinstance(message, str) else adapter.binary
        more, session = drive(adapter, take(message, 0.0), session)  # type: ignore[arg-type]
        out += more
    return out


def check_outcome(adapter: Adapter, out: list[Any]) -> None:
    """Whatever was said: sound JSON, at most one close, last, with a code of the table (or Deepgram's own) and a
    reason that fits into a close frame."""
    for message in messages(out):
        assert isinstance(message, dict)
        json.dumps(message, ensure_ascii=False).encode()
    found = closes(out)
    assert len(found) <= 1
    assert (adapter.phase == "closed") == bool(found)
    if found:
        assert out[-1] is found[0]
        assert len(found[0].reason.encode()) <= 123
        assert found[0].code == 1000 if not found[0].error else found[0].error in ERRORS
        own = re.match("(NET|DATA)-0000|NET-0001", found[0].reason) is not None
        assert not found[0].error or own or found[0].code == ERRORS[found[0].error].close_code


HOSTILE = (
    "", " ", "null", "[]", "1", '"x"', "{", "{]", "{}x", "NaN", '{"type":NaN}', '{"type":Infinity}', '{"a":1e999}',
    '{"type":"start","sample_rate":' + "9" * 5000 + "}", '{"type":"start","type":"eof"}', '{"type":"\\ud800"}',
    '{"\\udfff":1}', "[" * 100000, '{"a":' * 100000, '{"config":' * 9 + "{}" + "}" * 9, "\ud800", '{"type":"\ud800"}',
    '{"' + "k" * 100000 + '":1}', '{"type":null}', '{"type":[]}', '{"type":{"a":1}}', '{"config":"../../etc/passwd"}',
    '{"type":"start","session":"../../x","secret":"/etc/passwd"}', '{"type": "' + "x" * 100000 + '"}', "\x00",
)  # fmt: skip

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


def objects(keys: tuple[str, ...], values: tuple[Any, ...]) -> st.SearchStrategy[str]:
    """Objects with keys that mean something and values that may or may not."""
    item = st.sampled_from(values) | json_values
    return st.dictionaries(st.sampled_from(keys) | st.text(max_size=8), item, max_size=6).map(json.dumps)
