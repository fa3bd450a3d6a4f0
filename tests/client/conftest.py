"""The helpers of the server's tests serve those of the clients, too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "server"))
