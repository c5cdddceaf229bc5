"""The image's health check before each kind of port that an exporter may have."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import bcrypt
import pytest

from certificates import Authority
from deployment import DEPLOY
from prometheus_server import free_port
from waiting import eventually

CHECK = DEPLOY / "docker/healthcheck.py"
NOTHING = "gpu: {backend: none}\ntargets: []\n"
TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key"
CLIENTS = ", client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert"
USERS = "basic_auth_users: {prometheus: 'HASHED'}\n"


def healthy(port: int) -> bool:
    """What the check says of a port."""
    done = subprocess.run(
        [sys.executable, "-I", CHECK, f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    "web",
    ["", USERS, f"{TLS}}}\n", f"{TLS}}}\n{USERS}", f"{TLS}{CLIENTS}}}\n"],
    ids=["plain", "users", "tls", "tls and users", "client certificates"],
)
def test_an_exporter_is_healthy_however_its_port_is_protected(web: str, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(["127.0.0.1"]).write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yaml").write_text(web.replace("HASHED", hashed))
    port = free_port()
    log = tmp_path / "log"
    serve = [sys.executable, "-m", "brimline", "serve", "--listen", f"127.0.0.1:{port}"]
    (tmp_path / "brimline.yaml").write_text(NOTHING)
    with (
        open(log, "wb") as said,
        subprocess.Popen(
            [
                *serve,
                "--config",
                str(tmp_path / "brimline.yaml"),
                "--web.config.file",
                str(tmp_path / "web.yaml"),
            ],
            stdout=said,
            stderr=said,
        ) as process,
    ):
        try:
            eventually(lambda: "listening=" in log.read_text())
            found = eventually(lambda: healthy(port))
        finally:
            process.terminate()

    assert found


def test_a_port_that_nobody_serves_is_not_healthy() -> None:
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()

        assert not healthy(free_port())
        # It takes connections, and answers none.
        assert not healthy(hanging.getsockname()[1])
