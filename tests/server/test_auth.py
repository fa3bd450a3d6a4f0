"""Tokens: the file, how clients send one, and reloading."""

from pathlib import Path

import pytest

from asr.errors import ConfigError
from server.auth import Tokens, find_token


def tokens(tmp_path: Path, text: str) -> Tokens:
    file = tmp_path / "tokens"
    file.write_text(text)
    return Tokens(file)


def test_without_a_file_everyone_may() -> None:
    open_to_all = Tokens(None)
    assert not open_to_all.needed and open_to_all.check(None) == "" and open_to_all.check("x") == ""


def test_the_file_has_one_a_line_and_comments(tmp_path: Path) -> None:
    known = tokens(tmp_path, "# people\nalpha  # Ann\n\n  be#ta\n#gamma\n")
    assert [known.check(t) is not None for t in ("alpha", "be#ta", "gamma", "#gamma", "Ann", "alph", "", None)] == [
        True, True, False, False, False, False, False, False,
    ]  # fmt: skip


def test_owners_are_told_apart_and_give_no_token_away(tmp_path: Path) -> None:
    known = tokens(tmp_path, "alpha\nbeta\n")
    names = {known.check("alpha"), known.check("beta")}
    assert len(names) == 2 and all(name and "alpha" not in name and len(name) == 16 for name in names)


def test_strange_tokens_from_clients_are_only_wrong(tmp_path: Path) -> None:
    known = tokens(tmp_path, "alpha\n")
    assert [known.check(t) for t in ("é", "\ud800", "x" * 100_000, "\0")] == [None] * 4


@pytest.mark.parametrize("text, said", [("# none\n", "holds none"), ("two words\n", "one word"), ("é\n", "ASCII")])
def test_bad_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tokens(tmp_path, text)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Tokens(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Tokens(tmp_path / "binary")


def test_reload_takes_the_new_tokens_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    known = tokens(tmp_path, "alpha\n")
    (tmp_path / "tokens").write_text("beta\n")
    assert known.reload() == 1 and known.check("beta") and not known.check("alpha")
    (tmp_path / "tokens").write_text("")
    with pytest.raises(ConfigError):
        known.reload()
    assert known.check("beta")


@pytest.mark.parametrize(
    "authorization, subprotocols, token",
    [
        (["Bearer abc"], [], "abc"),
        (["Token abc"], [], "abc"),
        (["bearer   abc "], [], "abc"),
        (["Basic abc"], [], None),
        (["Bearer"], [], None),
        ([], ["token", "abc"], "abc"),
        ([], ["bearer", "abc"], "abc"),
        ([], ["token"], None),
        ([], ["abc", "token"], None),
        (["Bearer abc"], ["token", "def"], "abc"),
        ([], [], None),
    ],
)
def test_where_a_token_may_stand(authorization: list[str], subprotocols: list[str], token: str | None) -> None:
    assert find_token(authorization, subprotocols) == token
