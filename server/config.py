"""The server's settings: one frozen dataclass, filled from the command line, the environment, a TOML file and defaults.

Every option has one name everywhere: ``max_sessions`` in the file, ``ASR_MAX_SESSIONS`` in the environment and
``--max-sessions`` on the command line. What is nearer to the command wins: command line, environment, file, default.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asr.config import from_dict, require
from asr.errors import ConfigError
from server.limits import Limits, setting

ENVIRONMENT = "ASR_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_FOREIGN = ("ASR_MODELS", "ASR_CONFIG")  # read elsewhere


@dataclass(frozen=True)
class ServerConfig:
    """Settings of ``asr serve``. They hold from the start to the end of the process: nothing that a client sends
    changes them. :class:`ConfigError` for values that make no sense."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 or :: for all")
    port: int = setting(2700, "port to listen on; 0: any free one, which the log names")
    model: str = setting("en", "shipped model or model folder")
    device: str = setting("cpu", "cpu, cuda, cuda:1, ...")
    precision: str = setting(
        "fp16", "of the network's products: fp16, bf16 (fast with AMX), w8a8 (with VNNI), int8 or fp32"
    )
    search: str = setting("beam", "beam (with the language model) or greedy (faster)")
    workers: int = setting(1, "server processes that share the port, each with an engine of its own")
    engine_workers: int = setting(1, "engine processes of each server process")
    threads: int = setting(1, "threads of each engine process")
    wait_ms: float = setting(5.0, "the engine waits so long for more streams to join a step")
    max_sessions: int = setting(200, "live sessions in all; more are refused (503, 1013)")
    sessions_per_token: int = setting(0, "live sessions of one token; 0: as many as there are in all")
    tls_cert: str = setting("", "certificate chain (PEM); with it the server speaks TLS only")
    tls_key: str = setting("", "private key of the certificate (PEM)")
    tokens: str = setting("", "file of tokens, one a line, # comments; without it everyone may connect")
    origins: str = setting("", "web pages that may connect, with commas (https://a.example); empty: any")
    session_store: str = setting("memory", "where dropped sessions wait: memory, redis://HOST:PORT/DB or rediss://")
    store_bytes: int = setting(256_000_000, "most bytes of dropped sessions in memory; the oldest go first")
    drain_seconds: float = setting(30.0, "after SIGTERM, running sessions have so long to finish")
    retry_after_seconds: int = setting(5, "what a refused client is told to wait")
    refuse_lag_ms: float = setting(3000.0, "new sessions are refused while those of live clients are later than this")
    ping_seconds: float = setting(20.0, "a ping after so much, and its answer within as much again")
    metrics: bool = setting(True, "answer GET /metrics")
    log_level: str = setting("info", "debug, info, warning or error")
    log_transcripts: bool = setting(False, "write final texts into the log, which is otherwise free of speech")
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, f"port is {self.port}: choose 1 to 65535, or 0 for any free one")
        for name in ("workers", "engine_workers", "threads", "max_sessions", "store_bytes", "retry_after_seconds"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: choose 1 or more")
        require(self.sessions_per_token >= 0, "sessions_per_token is negative: choose 1 or more, or 0 for no limit")
        for name in ("drain_seconds", "wait_ms"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}: choose 0 or more")
        for name in ("ping_seconds", "refuse_lag_ms"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: choose more than 0")
        fair = f"max_sessions is {self.max_sessions}: less than one for each of the {self.workers} workers"
        require(self.max_sessions >= self.workers, fair)
        require(bool(self.tls_cert) == bool(self.tls_key), "tls_cert and tls_key belong together: give both or none")
        levels = ("debug", "info", "warning", "error")
        require(self.log_level in levels, f"log_level is {self.log_level!r}: choose one of {', '.join(levels)}")
        scheme = self.session_store.partition("://")[0]
        shown = f"session_store is {mask(self.session_store)!r}: choose memory or redis://HOST:PORT/DB"
        require(self.session_store == "memory" or scheme in ("redis", "rediss"), shown)

    @property
    def engine_slots(self) -> int:
        """Sessions that one engine process may hold: its share of the server process's, rounded up."""
        return -(-self.slots // self.engine_workers)

    @property
    def slots(self) -> int:
        """Sessions that one server process may hold: its share of ``max_sessions``, rounded up."""
        return -(-self.max_sessions // self.workers)

    def shown(self) -> dict[str, Any]:
        """All options with their values for the log: no secrets (a password in the store's address is masked)."""
        return {option.name: mask(value) if isinstance(value := option.of(self), str) else value for option in OPTIONS}


@dataclass(frozen=True)
class Option:
    """One setting: its names, type (bool, int, float or str), default and one line of help."""

    name: str
    type: type
    default: Any
    help: str
    limit: bool  # a field of Limits

    @property
    def flag(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """In the environment."""
        return ENVIRONMENT + self.name.upper()

    def of(self, config: ServerConfig) -> Any:
        """Its value in ``config``."""
        return getattr(config.limits if self.limit else config, self.name)

    def parse(self, text: str) -> Any:
        """The value that ``text`` of the environment stands for; :class:`ConfigError` if it is none."""
        try:
            if self.type is bool:
                return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[text.strip().lower()]
            return self.type(text)
        except (KeyError, ValueError):
            kind = {bool: "true or false", int: "a whole number", float: "a number"}[self.type]
            hint = " (Kubernetes sets such a variable for a Service named 'asr': enableServiceLinks: false)"
            raise ConfigError(
                f"{self.variable} is {text[:60]!r}: it must be {kind}{hint if '://' in text else ''}"
            ) from None


def _options() -> tuple[Option, ...]:
    found = []
    for cls in (ServerConfig, Limits):
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if item.name != "limits":
                kind, help = hints[item.name], item.metadata["help"]
                found.append(Option(item.name, kind, item.default, help, cls is Limits))
    return tuple(found)


OPTIONS = _options()
_BY_NAME = {option.name: option for option in OPTIONS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` an argument for every option; what is not given stays out of the namespace."""
    parser.add_argument("--config", metavar="FILE", help="settings as TOML (also ASR_CONFIG)")
    for option in OPTIONS:
        default = "none" if option.default == "" else str(option.default).lower()
        help = f"{option.help} ({default})".replace("%", "%%")
        if option.type is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(option.flag, action=action, default=argparse.SUPPRESS, help=help)
        else:
            kind = {int: "N", float: "X", str: "TEXT"}[option.type]
            parser.add_argument(option.flag, type=option.type, metavar=kind, default=argparse.SUPPRESS, help=help)


def load_config(arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> ServerConfig:
    """Settings from ``arguments`` (by option name; others are passed over), ``environment`` (the process's own by
    default) and the file that ``config`` or ``ASR_CONFIG`` names. :class:`ConfigError` for what cannot be."""
    environment = os.environ if environment is None else environment
    path = arguments.get("config") or environment.get("ASR_CONFIG")
    values = _from_file(Path(path)) if path else {}
    for option in OPTIONS:
        if option.variable in environment:
            values[option.name] = option.parse(environment[option.variable])
    values |= {name: value for name, value in arguments.items() if name in _BY_NAME}
    limits = {name: values.pop(name) for name in list(values) if _BY_NAME[name].limit}
    return from_dict(ServerConfig, values | {"limits": limits})


def strange_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that look like misspelt options, and what they may have meant."""
    environment = os.environ if environment is None else environment
    known = {option.variable for option in OPTIONS}.union(_FOREIGN)
    found: dict[str, str] = {}
    for name in environment:
        if name.startswith(ENVIRONMENT) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            found |= {name: near[0]} if near else {}
    return found


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for key in values:
        if key not in _BY_NAME:
            near = difflib.get_close_matches(key, _BY_NAME, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown key '{key}': did you mean '{near[0]}'?")
    return values


def mask(value: str) -> str:
    """``value`` with the password of an address in it replaced by stars."""
    try:
        password = urlsplit(value).password if "://" in value else None
    except ValueError:
        return "***"
    return value.replace(f":{password}@", ":***@") if password else value


def options_table() -> str:
    """All options as a table in Markdown, for docs/operations.md."""
    rows = ["| command line | environment | default | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        default = "none" if option.default == "" else str(option.default).lower()
        rows.append(f"| `{option.flag}` | `{option.variable}` | {default} | {option.help} |")
    return "\n".join(rows) + "\n"
