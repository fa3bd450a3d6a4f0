"""A real Redis server for a test: Debian's redis-server on a port of its own, without a file."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

SECONDS = 10.0


def free_port() -> int:
    """A TCP port of this machine that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running_redis(*options: str, port: int = 0) -> Iterator[str]:
    """Its address; the test is skipped where the program or its Python client is missing."""
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    port = port or free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
                sock.sendall(b"PING\r\n")
                if sock.recv(5).startswith((b"+PONG", b"-NOAU")):
                    break
            assert process.poll() is None and time.monotonic() < end, "redis-server did not start"
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(SECONDS)
