"""Exit 0 where the exporter answers at all: `healthcheck.py [HOST:PORT]`, 127.0.0.1:10778 without.

With or without TLS, users and certificates of clients: 401 is an answer, and so is a handshake, which the
process makes itself. For Docker, and for Kubernetes' `exec` probes where a plain one would need the password.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys

# Of each of the two tries; together less than the image's own timeout.
TIMEOUT_SECONDS = 2.0


def speaks_http(host: str, port: int) -> bool:
    """True where a plain request is answered."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/-/healthy")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def speaks_tls(host: str, port: int) -> bool:
    """True where a handshake is made, or refused in words."""
    # Nothing is told and nothing is believed: whose certificate it is does not matter here.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=TIMEOUT_SECONDS) as plain,
            unverified.wrap_socket(plain),
        ):
            return True
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError:
        return True
    except OSError:
        return False


if __name__ == "__main__":
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:10778").rpartition(":")
    where = host.strip("[]"), int(port)
    sys.exit(not (speaks_http(*where) or speaks_tls(*where)))
