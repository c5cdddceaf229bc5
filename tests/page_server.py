"""Serves one vLLM page at every address of 127.0.0.0/8, so that a thousand targets are one cheap process.

`python page_server.py PORT`. It is the page of a busy server: with each answer whatever it has counted so far
has grown, and its load is another, as a page that never changes would flatter whoever remembers pages.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vllm_pages import document, page

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
# Counters and histograms: digits of the answer's number go behind the whole part of
# each, so that buckets stay in order and their sum is the count.
_COUNTED = re.compile(rb"(?m)^(vllm:\w+_(?:total|bucket|sum|count)\{.*\} [0-9]+)(\.\S+)$")
_LOAD = re.compile(rb"(?m)^(vllm:(?:num_requests_running|num_requests_waiting)\{.*\} [1-9][0-9]*)(\.0)$")
_USAGE = re.compile(rb"(?m)^(vllm:kv_cache_usage_perc\{.*\} 0\.)(\S+)$")
_NUMBER, _DIGIT = b"NNNNNN", b"DDDD"


def _head(length: int, content_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n".encode()


class Answers:
    """What is served."""

    def __init__(self) -> None:
        body, counted = _COUNTED.subn(rb"\1%b\2" % _NUMBER, page())
        for gauge in (_LOAD, _USAGE):
            body, count = gauge.subn(rb"\1%b\2" % _DIGIT, body)
            assert count
        assert counted > 100
        length = len(body) - body.count(_DIGIT) * (len(_DIGIT) - 1)
        self._page = _head(length, "text/plain; version=0.0.4; charset=utf-8") + body
        self._others: dict[bytes, bytes] = {
            path: _head(len(body), "application/json") + body
            for path, body in (
                (b"/version", document("version.json")),
                (b"/v1/models", document("v1_models.json")),
            )
        }
        self._answers = 0

    def to(self, path: bytes) -> bytes:
        """The answer to a GET of the path."""
        if path == b"/metrics":
            self._answers += 1
            number, digit = b"%06d" % self._answers, b"%d" % (1 + self._answers % 9)
            return self._page.replace(_NUMBER, number).replace(_DIGIT, digit)
        return self._others.get(path, _NOT_FOUND)


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


@contextmanager
def running_pages(port: int) -> Iterator[int]:
    """Such a server as a process of its own; its process id."""
    process = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def address(number: int) -> str:
    """An address of this machine for each number up to 62,500."""
    return f"127.1.{number // 250}.{1 + number % 250}"


async def main(port: int) -> None:
    answers = Answers()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers), "0.0.0.0", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
