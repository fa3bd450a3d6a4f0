"""What the small programs of this package (``python -m asr.training...``) have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable

from asr.errors import AsrError


def run_tool(work: Callable[[], object]) -> int:
    """Do the work; the exit status. What the user gave wrong is said on standard error."""
    try:
        work()
    except AsrError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
