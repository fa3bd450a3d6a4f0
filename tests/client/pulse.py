"""A PulseAudio of the test's own: a null sink whose monitor is the microphone."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("pulseaudio", "pactl", "paplay")
ALSA = "pcm.!default { type pulse }\nctl.!default { type pulse }\n"


def missing() -> str:
    """Why there can be none here; "" if there can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"needs PulseAudio: {', '.join(absent)} not found" if absent else ""


@contextlib.contextmanager
def pulse(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which PortAudio (through ALSA) and ``paplay`` find it."""
    for name in ("run", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(0o700)
    (folder / "home" / ".asoundrc").write_text(ALSA)
    socket = folder / "run" / "socket"
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "PULSE_RUNTIME_PATH": str(folder / "run"),
        "PULSE_SERVER": f"unix:{socket}",
    }
    environment.pop("DISPLAY", None)
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--realtime=no",
               "--high-priority=no", "--disallow-exit", "--log-target=stderr",
               "-L", f"module-native-protocol-unix socket={socket} auth-anonymous=1",
               "-L", "module-null-sink sink_name=room rate=16000 channels=1",
               "-L", "module-always-sink"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(environment, server)
            for line in (["set-default-sink", "room"], ["set-default-source", "room.monitor"]):
                subprocess.run(["pactl", *line], env=environment, check=True, timeout=30)
            yield environment
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)


def _wait_for(environment: dict[str, str], server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        assert server.poll() is None, "pulseaudio ended"
        done = subprocess.run(["pactl", "info"], env=environment, capture_output=True, timeout=30)
        if done.returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError("pulseaudio does not answer")


def play(environment: dict[str, str], path: Path) -> None:
    """Into the room; returns at its end."""
    subprocess.run(["paplay", str(path)], env=environment, check=True, timeout=60)
