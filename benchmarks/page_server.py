"""Serves one vLLM page at every address of 127.0.0.0/8, so that a thousand targets are one cheap process.

`python page_server.py PORT`. Bytes are made once; only the number of generated tokens grows with each
answer, as a page that never changes would flatter whoever remembers pages. Answers `CPU PAGES` (seconds, pages
served) to GET /-/cost.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time

from pages import document, page

_COUNTER = re.compile(rb"(?m)^(vllm:generation_tokens_total\{[^}]*\} )\S+$")


def _head(length: int, content_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n".encode()


class Answers:
    """What is served, and how often the page was."""

    def __init__(self) -> None:
        found = _COUNTER.search(body := page())
        assert found is not None
        before, after = body[: found.end(1)], body[found.end() :]
        length = len(before) + 14 + len(after)
        self._before = _head(length, "text/plain; version=0.0.4; charset=utf-8") + before
        self._after = after
        self._others = {
            path: _head(len(body), "application/json") + body
            for path, body in (
                (b"/version", document("version.json")),
                (b"/v1/models", document("v1_models.json")),
            )
        }
        self.pages = 0

    def to(self, path: bytes) -> bytes:
        """The answer to a GET of the path."""
        if path == b"/metrics":
            self.pages += 1
            return b"%b%012d.0%b" % (self._before, 1000 + self.pages, self._after)
        if path == b"/-/cost":
            said = f"{time.process_time():.6f} {self.pages}".encode()
            return _head(len(said), "text/plain") + said
        return self._others.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


class Connection(asyncio.Protocol):
    """One kept connection; requests come one after the other."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            path = self._received.split(b" ", 2)[1]
            self._received = self._received[end + 4 :]
            self._transport.write(self._answers.to(path))


async def main(port: int) -> None:
    answers = Answers()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers), "0.0.0.0", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
