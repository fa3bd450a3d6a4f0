"""The files in docs/deploy and the Dockerfile: nginx runs with ours; the others agree with the server's options."""

import asyncio
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from redis_server import free_port
from serving import dial, eventually, finals, get, offline, rest, run, serving, speech, url
from test_app_tls import certificate

from server.config import OPTIONS, load_config
from server.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"


def nginx_folder(folder: Path, port: int, servers: list[int]) -> Path:
    """Our configuration with addresses and files of the test."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    cert, key = certificate(folder, "proxy")
    text = (DEPLOY / "nginx.conf").read_text()
    for number, server in enumerate(servers):
        text = text.replace(f"10.0.0.1{number + 1}:2700", f"127.0.0.1:{server}")
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("/etc/nginx/tls/fullchain.pem", str(cert)).replace("/etc/nginx/tls/privkey.pem", str(key))
    assert "10.0.0" not in text and "/etc/nginx/tls" not in text
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths}\n{text}\n}}"
    (folder / "nginx.conf").write_text(main)
    return Path(program)


def test_sessions_through_nginx_and_past_a_full_server(tiny_path: Path, tiny: Any, tmp_path: Path) -> None:
    pcm, port = speech(3, seed=4), free_port()

    async def transcribe(context: ssl.SSLContext) -> str:
        async with dial(url(port, tls=True), ssl=context) as connection:
            await connection.send('{"type":"start"}')
            await connection.send(pcm)
            await connection.send('{"type":"eof"}')
            return finals(await rest(connection))

    async def main() -> None:
        async with serving(tiny_path) as one, serving(tiny_path) as two:
            program = nginx_folder(tmp_path, port, [one.port, two.port])
            context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            command = [str(program), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
            proxy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            try:
                await eventually(lambda: listens(port) or proxy.poll() is not None)
                assert proxy.poll() is None, proxy.stderr and proxy.stderr.read()
                assert [await transcribe(context) for _ in range(4)] == [offline(tiny, pcm)] * 4
                one.gate.draining = True  # says 503: nginx asks the other
                assert [await transcribe(context) for _ in range(4)] == [offline(tiny, pcm)] * 4
                assert (await get(two.port, "/metrics"))[0] == 200
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert (await reader.readline()).split()[1] == b"404"
                writer.close()
            finally:
                proxy.terminate()
                proxy.wait(10)

    run(main)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_arguments_in_the_kubernetes_file_are_options() -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text()
    arguments = re.findall(r'"(--[a-z-]+)"', text.partition("name: asr-redis")[0])
    assert arguments and set(arguments) <= {option.flag for option in OPTIONS}
    grace = int(re.findall(r"terminationGracePeriodSeconds: (\d+)", text)[0])
    drain = int(re.findall(r'"--drain-seconds", "(\d+)"', text)[0])
    assert grace >= drain + 90  # as docs/operations.md says
    assert "enableServiceLinks: false" in text and "runAsNonRoot: true" in text


def test_variables_of_the_dockerfile_are_options_and_it_has_a_user() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lines = re.findall(r"^ENV (.*)$", text, re.MULTILINE)
    variables = dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))
    ours = {name: value for name, value in variables.items() if name.startswith("ASR_") and name != "ASR_MODELS"}
    config = load_config({}, ours)
    assert (config.host, config.port) == ("0.0.0.0", 2700) and len(ours) == 2
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists(), name


def test_metrics_in_the_document_are_those_of_the_server() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## Metrics")[2].partition("```")[0]
    named = set(re.findall(r"`(asr_\w+)", table))
    families = {family.name for family in Metrics().registry.collect()}
    known = families | {f"{name}_total" for name in families}
    assert named <= known, named - known
    missing = {name for name in families if name not in named and f"{name}_total" not in named}
    assert missing <= {"asr_sessions_parked_bytes"}, missing
