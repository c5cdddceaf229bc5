"""Series into a Prometheus that takes remote writes, old ones too, with their ends.

Written instead of promtool's blocks because text formats cannot say that a series ended: in one that was
back-filled from text it lives on for five minutes after its last sample, and with it every alert on a server
that is down. The messages are those of prompb/remote.proto and types.proto (Prometheus 2.42), in a Snappy
block that compresses nothing.
"""

from __future__ import annotations

import struct
import urllib.request
from collections.abc import Iterable, Mapping

# NaN with the bits by which Prometheus knows that a series ended (model/value/value.go, StaleNaN).
_STALE = struct.pack("<Q", 0x7FF0000000000002)
_double = struct.Struct("<d").pack


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


class SampleTime:
    """A time as every sample of a scrape ends with."""

    __slots__ = ("head", "tail")

    def __init__(self, seconds: float) -> None:
        self.tail = b"\x10" + _varint(round(seconds * 1000))
        # Sample as field 2 of its series, its value as field 1.
        self.head = bytes([0x12, 9 + len(self.tail), 0x09])


class Samples:
    """The samples of one series, encoded, in the order of time."""

    __slots__ = ("encoded",)

    def __init__(self) -> None:
        self.encoded = bytearray()

    def add(self, time: SampleTime, value: float) -> None:
        """Append a sample."""
        self.encoded += time.head + _double(value) + time.tail

    def end(self, time: SampleTime) -> None:
        """Say that the series is no longer there."""
        self.encoded += time.head + _STALE + time.tail


def time_series(labels: Mapping[str, str], samples: Samples) -> bytes:
    """One series of a write request. labels: with `__name__`; empty ones are none."""
    body = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, value.encode()))
        for name, value in sorted(labels.items())
        if value
    )
    return _field(1, body + samples.encoded)


def snappy(plain: bytes) -> bytes:
    """A Snappy block of literals only."""
    out = [_varint(len(plain))]
    size = 1 << 24
    for begin in range(0, len(plain), size):
        part = plain[begin : begin + size]
        out += [b"\xfc", struct.pack("<I", len(part) - 1), part]
    return b"".join(out)


def write(url: str, series: Iterable[bytes]) -> None:
    """Send series to the Prometheus at the URL. Raises OSError, with what it says, where it refuses."""
    request = urllib.request.Request(
        f"{url}/api/v1/write",
        data=snappy(b"".join(series)),
        headers={
            "Content-Encoding": "snappy",
            "Content-Type": "application/x-protobuf",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=120):
            pass
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: {error.code} {error.read().decode(errors='replace').strip()}") from None
