"""TLS on the same port, and a certificate that is renewed without a stop."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
from serving import dial, finals, offline, rest, run, serving, settings, speech, stream, url
from websockets.exceptions import InvalidMessage

from asr.errors import ConfigError
from server.app import tls_context


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    pytest.importorskip("cryptography", reason="the package cryptography makes the certificate")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return paths


def test_sessions_over_tls_and_a_renewed_certificate(tiny_path: Path, tiny: Any, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "first")
    pcm = speech(2, seed=4)

    async def subject(server: Any) -> str:
        context = ssl.create_default_context(cafile=str(cert))
        async with dial(url(server, tls=True), ssl=context) as connection:
            peer: Any = connection.transport.get_extra_info("peercert")
            assert connection.transport.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
            return str(dict(item[0] for item in peer["subject"])["commonName"])

    async def main() -> None:
        async with serving(tiny_path, tls_cert=str(cert), tls_key=str(key)) as server:
            context = ssl.create_default_context(cafile=str(cert))
            async with dial(url(server, tls=True), ssl=context) as connection:
                await connection.send('{"type":"start"}')
                await connection.send(pcm)
                await connection.send('{"type":"eof"}')
                assert finals(await rest(connection)) == offline(tiny, pcm)
            assert await subject(server) == "first"
            with pytest.raises(ssl.SSLCertVerificationError):
                async with dial(url(server, tls=True)):
                    pass
            with pytest.raises((OSError, EOFError, InvalidMessage)):
                await stream(url(server), pcm)  # plain, on the port of TLS
            certificate(tmp_path, "second")
            server.reload()
            assert await subject(server) == "second"
            key.write_text("broken")
            server.reload()  # the old one goes on holding
            assert await subject(server) == "second"

    run(main)


@pytest.mark.parametrize("broken", ["cert", "key", "swapped", "missing"])
def test_certificates_that_cannot_be_used_get_one_line(tmp_path: Path, broken: str) -> None:
    cert, key = certificate(tmp_path, "x")
    if broken == "cert":
        cert.write_text("no certificate")
    elif broken == "key":
        key.write_text("no key")
    elif broken == "swapped":
        cert, key = key, cert
    else:
        cert = tmp_path / "none.pem"
    with pytest.raises(ConfigError, match="tls_cert") as error:
        tls_context(settings(tls_cert=str(cert), tls_key=str(key)))
    assert "\n" not in str(error.value)
