"""The series of a run are those of the exporter's pages, and end where a scrape lacks them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from brimline.exposition import render
from brimline.readings import Snapshot
from scenarios.remote_write import Samples, SampleTime, snappy
from scenarios.series import LABELS, run_series
from scenarios.stories import BY_NAME

EPOCH = 1_767_571_200.0
_STALE = 0x7FF0000000000002


def _decoded(samples: Samples) -> Iterator[tuple[float, float | None]]:
    """Times since the epoch and values; None for an end."""
    encoded = bytes(samples.encoded)
    for begin in range(0, len(encoded), 18):
        frame = encoded[begin : begin + 18]
        assert (frame[:3], frame[11:12]) == (b"\x12\x10\x09", b"\x10")
        milliseconds = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(frame[12:]))
        is_end = struct.unpack("<Q", frame[3:11])[0] == _STALE
        value: float = struct.unpack("<d", frame[3:11])[0]
        yield milliseconds / 1000 - EPOCH, None if is_end else value


def _first(name: str, seed: int) -> Snapshot:
    return next(
        snapshot
        for _, snapshot in BY_NAME[name].world(seed).scrapes(EPOCH)
        if snapshot and snapshot.targets[0].up
    )


def test_series_are_those_of_the_page() -> None:
    page, _ = render(_first("second-process", 2))
    stated = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name.startswith("brimline_")
    }

    _, series = run_series("second-process", 2, BY_NAME["second-process"].world(2), EPOCH)

    written = {
        (name, tuple(sorted(zip(LABELS[name], values, strict=True))))
        for name, values in series
        if name != "up"
    }
    assert stated <= written
    later = {name for name, _ in written - stated}
    assert later <= {
        "brimline_target_problem",
        "brimline_target_info",  # without an engine while the server is down
        "brimline_memory_bytes",
        "brimline_gpu_process_memory_bytes",
        "brimline_predicted_decode_ceiling_tokens_per_second",
    }


def test_every_sample_comes_after_the_one_before() -> None:
    _, series = run_series("exporter-restarts", 0, BY_NAME["exporter-restarts"].world(0), EPOCH)

    for samples in series.values():
        times = [at for at, _ in _decoded(samples)]
        assert times == sorted(set(times))


def test_where_a_scrape_fails_every_series_ends() -> None:
    _, series = run_series("exporter-restarts", 0, BY_NAME["exporter-restarts"].world(0), EPOCH)

    failed = [at for at, value in _decoded(series["up", ()]) if value == 0]
    used = next(samples for (name, _), samples in series.items() if name == "brimline_gpu_memory_used_bytes")
    ends = [at for at, value in _decoded(used) if value is None]
    first_failures = [at for at in failed if not any(0 < at - other < 20 for other in failed)]
    assert len(failed) >= 3
    assert ends[:-1] == first_failures


def test_a_constant_is_written_each_minute_and_what_moves_each_scrape() -> None:
    _, series = run_series("fast-leak", 0, BY_NAME["fast-leak"].world(0), EPOCH)

    def longest_gap(name: str) -> float:
        samples = next(samples for (family, _), samples in series.items() if family == name)
        times = [at for at, _ in _decoded(samples)]
        return max(after - before for before, after in itertools.pairwise(times))

    assert 45 < longest_gap("brimline_gpu_memory_total_bytes") < 80
    assert longest_gap("brimline_gpu_memory_free_bytes") < 35


def test_times_are_milliseconds_and_snappy_says_its_length() -> None:
    samples = Samples()
    samples.add(SampleTime(EPOCH + 0.25), 1.5)

    assert list(_decoded(samples)) == [(0.25, 1.5)]
    assert snappy(b"abc") == b"\x03\xfc\x02\x00\x00\x00abc"
