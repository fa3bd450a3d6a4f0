"""Settings of the server: where they come from, which wins, and what is said of those that cannot be."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from asr.errors import ConfigError
from server.config import OPTIONS, ServerConfig, add_arguments, load_config, mask, options_table, strange_variables
from server.limits import Limits

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


def parse(*arguments: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args(arguments))


def test_defaults_without_anything() -> None:
    assert load_config(parse(), {}) == ServerConfig()


def test_the_nearer_setting_wins(tmp_path: Path) -> None:
    file = tmp_path / "asr.toml"
    file.write_text('port = 1\nmax_sessions = 11\nidle_seconds = 7\nhost = "file"\n')
    environment = {"ASR_PORT": "2", "ASR_MAX_SESSIONS": "22", "ASR_CONFIG": str(file)}
    config = load_config(parse("--port", "3"), environment)
    assert (config.port, config.max_sessions, config.host, config.limits.idle_seconds) == (3, 22, "file", 7.0)


def test_every_option_has_a_flag_a_variable_and_a_key(tmp_path: Path) -> None:
    for option in OPTIONS:
        value = {bool: not option.default, int: 3, float: 2.5, str: "x"}[option.type]
        value = {"log_level": "debug", "session_store": "redis://h"}.get(option.name, value)
        pair = {"tls_cert": "tls_key", "tls_key": "tls_cert"}.get(option.name)
        literal = str(value).lower() if option.type is bool else repr(value)
        switch = option.flag if value is True else option.flag.replace("--", "--no-", 1)
        flags = (switch,) if option.type is bool else (option.flag, str(value))
        other = ("--" + pair.replace("_", "-"), "x") if pair else ()
        file = tmp_path / f"{option.name}.toml"
        file.write_text(f"{option.name} = {literal}\n")
        ways = (
            load_config(parse(*flags, *other), {}),
            load_config(parse(*other), {option.variable: str(value)}),
            load_config(parse(*other, "--config", str(file)), {}),
        )
        assert [option.of(config) for config in ways] == [value] * 3, option.name


@pytest.mark.parametrize(
    "text, said",
    [
        ("prot = 1", "unknown key 'prot': did you mean 'port'?"),
        ("idle_second = 1", "did you mean 'idle_seconds'?"),
        ("port = 'x'", "'port' must be of type int"),
        ("port = true", "'port' must be of type int"),
        ("port = ", "not TOML"),
        ("port = 70000", "choose 1 to 65535"),
        ("idle_seconds = 0", "choose more than 0"),
        ("tls_cert = 'a.pem'", "belong together"),
        ("session_store = 'file:///x'", "choose memory or redis://HOST:PORT/DB"),
        ("session_store = 'memory://'", "choose memory or redis://HOST:PORT/DB"),
        ("max_sessions = 2\nworkers = 3", "less than one for each"),
        ("log_level = 'loud'", "choose one of debug"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "asr.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config({"config": str(file)}, {})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/no/such\.toml: No such file"):
        load_config({"config": "/no/such.toml"}, {})


def test_bad_variables_are_named_and_kubernetes_is_blamed() -> None:
    with pytest.raises(ConfigError, match=r"ASR_PORT is .* enableServiceLinks: false"):
        load_config({}, {"ASR_PORT": "tcp://10.0.0.1:2700"})
    with pytest.raises(ConfigError, match="ASR_METRICS is 'maybe': it must be true or false"):
        load_config({}, {"ASR_METRICS": "maybe"})


def test_misspelt_variables_are_found_and_foreign_ones_left_alone() -> None:
    environment = {"ASR_MAX_SESSION": "1", "ASR_SERVICE_HOST": "10.0.0.1", "ASR_PORT": "1", "ASR_MODELS": "x"}
    assert strange_variables(environment) == {"ASR_MAX_SESSION": "ASR_MAX_SESSIONS"}


def test_no_password_is_shown() -> None:
    url = "redis://user:s3cret@host:6379/0"
    assert mask(url) == "redis://user:***@host:6379/0"
    assert "s3cret" not in str(ServerConfig(session_store=url).shown())
    with pytest.raises(ConfigError) as error:
        ServerConfig(session_store="rediss+x://user:s3cret@host")
    assert "s3cret" not in str(error.value)


def test_what_is_shown_is_every_option() -> None:
    names = {f.name for cls in (ServerConfig, Limits) for f in dataclasses.fields(cls)} - {"limits"}
    assert set(ServerConfig().shown()) == names


def test_processes_share_the_sessions() -> None:
    assert ServerConfig(max_sessions=200, workers=3).slots == 67


def test_the_document_lists_every_option_as_it_is() -> None:
    assert options_table() in DOCUMENT.read_text(encoding="utf-8"), (
        "put server.config.options_table() into the document"
    )
