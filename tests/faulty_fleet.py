"""Many inference servers as one cheap process: `python faulty_fleet.py` prints its ports and serves.

At every address of 127.0.0.0/8: one port answers well, one never answers, and one has all that happens to a
server over the months within minutes: other models, restarts, errors, pages cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ports:
    """Where the fleet listens."""

    well: int
    hanging: int
    changing: int


@contextlib.contextmanager
def running_fleet() -> Iterator[Ports]:
    """The fleet as a process of its own."""
    process = subprocess.Popen([sys.executable, Path(__file__)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Ports(*map(int, process.stdout.readline().split()))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def page(models: list[str], tokens: int, start: int) -> bytes:
    """A vLLM page."""
    lines = [f"process_start_time_seconds {1_700_000_000 + start}"]
    for model in models:
        labels = f'{{model_name="{model}",engine="0"}}'
        lines += [
            f"vllm:num_requests_running{labels} 3.0",
            f"vllm:num_requests_waiting{labels} 1.0",
            f"vllm:kv_cache_usage_perc{labels} 0.25",
            f"vllm:prompt_tokens_total{labels} {tokens}.0",
            f"vllm:generation_tokens_total{labels} {tokens}.0",
        ]
    return ("\n".join(lines) + "\n").encode()


def whole(body: bytes, content_type: str = "text/plain; version=0.0.4", status: int = 200) -> bytes:
    """An HTTP answer."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


VERSION = whole(b'{"version": "0.33.0"}', "application/json")
MODELS = whole(
    b'{"data": [{"id": "m", "owned_by": "vllm", "root": "m", "max_model_len": 4096}]}', "application/json"
)
WELL = whole(page(["m"], 1000, 0))


def well(_number: int) -> tuple[bytes, bool]:
    return WELL, True


def changing(number: int) -> tuple[bytes, bool]:
    """The answer to the request of that number, and whether the connection stays open."""
    turn = number % 20
    if turn == 3:
        return whole(b"oops", status=500), True
    if turn == 7:
        return b"", False
    if turn == 11:
        return whole(page(["m"], number, 0))[:-30], False
    if turn == 15:
        return whole(b"<html>not now</html>", "text/html"), True
    boot = number // 50
    models = [f"model-{number // 20}-{each}" for each in range(3)]
    return whole(page(models, number % 50 + 1, boot) + f'vllm:bad{{x="{number}\n'.encode()), True


class Connection(asyncio.Protocol):
    """One client; each request is whole in one piece, as ours are."""

    def __init__(self, answer: Callable[[int], tuple[bytes, bool]] | None, numbers: Iterator[int]) -> None:
        self._answer = answer
        self._numbers = numbers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            return
        path = data.split(b" ", 2)[1]
        if path == b"/metrics":
            content, stays = self._answer(next(self._numbers))
        elif path in (b"/version", b"/v1/models"):
            content, stays = VERSION if path == b"/version" else MODELS, True
        else:
            content, stays = whole(b"", status=404), True
        self._transport.write(content)
        if not stays:
            self._transport.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    ports = []
    for answer in (well, None, changing):
        connect = functools.partial(Connection, answer, itertools.count())
        server = await loop.create_server(connect, "0.0.0.0", 0, backlog=4096)
        ports.append(server.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
