"""Exit 0 where the exporter answers at all: `healthcheck.py [HOST:PORT]`, 127.0.0.1:10778 without.

With or without TLS and passwords: 401 is an answer, too, and so is a handshake that is refused for want of a
client's certificate. For Docker, and for Kubernetes' `exec` probes where a plain one would need the password.
"""

from __future__ import annotations

import http.client
import ssl
import sys

TIMEOUT_SECONDS = 4.0


def answers(address: str) -> bool:
    """True where something speaks HTTP or TLS at HOST:PORT."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    # Nothing is told and nothing is believed: whose certificate it is does not matter here.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    plain = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)
    secure = http.client.HTTPSConnection(host, int(port), timeout=TIMEOUT_SECONDS, context=unverified)
    for connection in (plain, secure):
        try:
            connection.request("GET", "/-/healthy")
            return connection.getresponse().status < 500
        except ssl.SSLError:
            return True
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return False


if __name__ == "__main__":
    sys.exit(not answers(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:10778"))
