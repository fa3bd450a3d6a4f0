"""``asr serve``."""

from __future__ import annotations

import argparse
import asyncio
import logging

from asr import __version__
from server.config import ServerConfig, load_config, strange_variables
from server.logs import log, set_up


def serve(args: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises AsrError for settings, a model or a port that cannot be used."""
    config = load_config(vars(args))
    set_up(config.log_level)
    for name, near in strange_variables().items():
        log("unknown variable", logging.WARNING, variable=name, did_you_mean=near)
    log("configuration", version=__version__, **config.shown())
    asyncio.run(_serve(config))
    return 0


async def _serve(config: ServerConfig) -> None:
    if config.workers == 1:
        from server.process import run

        await run(config)
    else:
        from server.supervisor import Supervisor

        await Supervisor(config).run()
