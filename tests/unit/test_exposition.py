"""The page that is served, read back with the client library's own parsers."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest as classic_text
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from brimline import exposition
from brimline.catalog import METRICS, Column, Family, Kind, Row, Sums, Table, is_exposable
from brimline.estimate import Estimate
from brimline.exposition import Exposition, render
from brimline.readings import (
    TARGET_REASONS,
    DeviceReading,
    DiscoveryReading,
    EngineReading,
    Footprint,
    GpuReading,
    Histogram,
    HostReading,
    KvCacheFootprint,
    MemoryAccount,
    MemoryPart,
    Problem,
    ProcessReading,
    RankFootprint,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(snapshot: Snapshot, accept: str, families: Iterable[Family] = METRICS) -> dict[str, Metric]:
    """The families of the page, by the parser of the format that was asked for."""
    body, content_type = render(snapshot, accept, families=families)
    is_openmetrics = accept == OPENMETRICS
    assert content_type.startswith("application/openmetrics-text" if is_openmetrics else "text/plain")
    found = list((parse_openmetrics if is_openmetrics else parse_classic)(body.decode()))
    assert len({metric.name for metric in found}) == len(found)
    return {metric.name: metric for metric in found}


def samples(metrics: dict[str, Metric]) -> Samples:
    """All samples of Brimline's own, each once."""
    found = [
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for metric in metrics.values()
        for sample in metric.samples
        if sample.name.startswith("brimline_")
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


WEIGHTS = Estimate(2, 3, 4, "table")
FOOTPRINT = Footprint(
    engine="vllm",
    engine_version="0.32.0",
    parameters=1,
    ranks=(
        RankFootprint(
            pipeline_stage=0,
            components={"weights": WEIGHTS, "kv_cache": WEIGHTS},
            total=WEIGHTS,
            host={"weights": WEIGHTS},
        ),
    ),
    kv_cache=KvCacheFootprint(
        bytes_per_token=2.0,
        max_model_len_tokens=4,
        full_request_bytes=8,
        capacity_tokens=16,
        max_concurrency_requests=4.0,
    ),
    fits=True,
)
LATENCY = Histogram(((0.25, 1.0), (1.0, 3.0), (math.inf, 4.0)), 2.5, 4.0)


def target(name: str, histograms: str = "sums", **rank: object) -> TargetSnapshot:
    """A target that is up, with one rank of the model m that states what is given."""
    base = RankReading(model="m")
    reading = EngineReading(engine="vllm", ranks=(msgspec.structs.replace(base, **rank),))
    return TargetSnapshot(name=name, url="http://h", up=True, reading=reading, histograms=histograms)


def snapshot(*targets: TargetSnapshot) -> Snapshot:
    return Snapshot(time=1000.0, targets=targets)


def everything() -> Snapshot:
    """A snapshot in which every family has a row."""
    kinds = RankReading.__annotations__
    numbers = {
        name: float(index) for index, (name, kind) in enumerate(kinds.items()) if kind == "float | None"
    }
    histograms = {name: LATENCY for name, kind in kinds.items() if kind == "Histogram | None"}
    rank = msgspec.structs.replace(
        RankReading(
            model="m",
            requests_waiting_by_reason={"capacity": 1},
            requests_finished_total={"stop": 2},
            measured_memory_bytes={"weights": 3},
            model_memory_bytes={"gpu": 4},
        ),
        **numbers,
        **histograms,
    )
    reading = EngineReading(
        engine="vllm",
        engine_version="0.32.0",
        ranks=(rank,),
        start_time=900.0,
        sleeping=False,
        missing=("preemptions_total",),
    )
    full = TargetSnapshot(
        name="full",
        url="http://h",
        up=True,
        reading=reading,
        histograms="full",
        problems=(Problem("bad_values", "x"),),
        errors=dict.fromkeys(TARGET_REASONS, 0),
        duration_seconds=0.25,
        age_seconds=0.0,
        last_success=999.0,
        settings={"max_model_len": "4096"},
        settings_complete=True,
        mismatches={"max_model_len": False},
        fingerprint="abc",
        config_changed=950.0,
        gpus=((Uuid("GPU-a"), "0"),),
        footprint=FOOTPRINT,
        process=ProcessReading(pids=frozenset({1}), host_memory_used_bytes=1, host_memory_limit_bytes=2),
    )
    device = DeviceReading(
        uuid=Uuid("GPU-a"),
        index="0",
        name="H100",
        driver="570",
        memory_api="v2",
        total_bytes=10,
        used_bytes=4,
        free_bytes=5,
        reserved_bytes=1,
        used_peak_bytes=6,
        power_limit_watts=700.0,
        problem="hang",
    )
    return Snapshot(
        time=1000.0,
        targets=(full, target("sums", "sums", **histograms), target("none", "none", **histograms)),
        gpu=GpuReading(up=False, problem="no_gpus", devices=(device,)),
        memory=MemoryAccount(
            parts=(
                MemoryPart(
                    gpu=Uuid("GPU-a"), target="full", component="weights", basis="predicted", size_bytes=3
                ),
            ),
            headroom_bytes={"full": -1},
            error_ratio={("full", "kv_cache"): -0.25},
            ceiling_tokens_per_second={"full": 221.0},
            process_bytes={Uuid("GPU-a"): {"other": 1}},
        ),
        host=HostReading(100, 50),
        reload_success_time=1.0,
        discovery=(DiscoveryReading(source="files", up=True, targets=3, success_time=998.0),),
    )


FORMATS = pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["classic", "openmetrics"])


@FORMATS
def test_a_page_with_every_family_is_one_that_the_client_librarys_parser_takes(accept: str) -> None:
    shown = everything()
    without_rows = [family.name for family in METRICS if not list(family.rows(shown))]

    metrics = parsed(shown, accept)

    assert without_rows == []
    for family in METRICS:
        name = family.full_name.removesuffix("_total") if family.kind == "counter" else family.full_name
        assert metrics[name].documentation == family.help
        assert metrics[name].type == family.kind


def test_both_formats_carry_the_same_samples() -> None:
    shown = everything()

    assert samples(parsed(shown, "")) == samples(parsed(shown, OPENMETRICS))


@FORMATS
def test_an_empty_snapshot_is_a_page_too(accept: str) -> None:
    found = samples(parsed(snapshot(), accept))

    assert {name for name, _ in found} == {"brimline_build_info", "brimline_config_last_reload_successful"}


@FORMATS
def test_the_exporters_own_process_is_on_the_page(accept: str) -> None:
    assert "python_info" in parsed(snapshot(), accept)


# --- against the client library


class _Families:
    """Families as a collector of the client library."""

    def __init__(self, snapshot: Snapshot, families: Iterable[Family]) -> None:
        self._metrics = [self._metric(family, snapshot) for family in families]

    def collect(self) -> list[Metric]:
        return [metric for metric in self._metrics if metric is not None]

    @staticmethod
    def _metric(family: Family, snapshot: Snapshot) -> Metric | None:
        name = family.full_name
        rows: dict[tuple[str, ...], Row] = {}
        for row, value in family.rows(snapshot):
            if is_exposable(value):
                encodable = tuple(label.encode("utf-8", "replace").decode() for label in row)
                rows.setdefault(encodable, (encodable, value))
        metric = Metric(name.removesuffix("_total"), family.help, family.kind)
        is_full = any(target.histograms == "full" for target in snapshot.targets)
        if family.kind == "histogram" and not is_full:
            metric.type = "summary"
        for texts, value in rows.values():
            labels = dict(zip(family.labels, texts, strict=True))
            if isinstance(value, float | int):
                metric.add_sample(name, labels, value)
                continue
            buckets = value.buckets if isinstance(value, Histogram) else ((math.inf, value.count),)
            for bound, count in buckets if is_full else ():
                le = "+Inf" if math.isinf(bound) else repr(bound)
                metric.add_sample(f"{name}_bucket", {**labels, "le": le}, count)
            metric.add_sample(f"{name}_count", labels, value.count)
            metric.add_sample(f"{name}_sum", labels, value.sum)
        return metric if rows else None


def by_the_library(snapshot: Snapshot, accept: str, families: Iterable[Family] = METRICS) -> bytes:
    """Brimline's families as the client library writes them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(snapshot, families))
    encode: Callable[[CollectorRegistry], bytes] = openmetrics_text if accept == OPENMETRICS else classic_text
    return encode(registry)


class _Own:
    """What the client library says of this process, as it was at one moment."""

    def __init__(self) -> None:
        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._metrics = list(registry.collect())

    def collect(self) -> list[Metric]:
        return self._metrics

    def numbers(self) -> dict[str, float]:
        return {sample.name: sample.value for metric in self._metrics for sample in metric.samples}


@FORMATS
def test_the_exporters_own_process_is_written_as_the_client_library_writes_it(
    accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, own = CollectorRegistry(auto_describe=False), _Own()
    registry.register(own)
    changing = exposition._measured().keys()
    monkeypatch.setattr(exposition, "_OWN", registry)
    monkeypatch.setattr(exposition, "_measured", lambda: {name: own.numbers()[name] for name in changing})
    encode: Callable[[CollectorRegistry], bytes] = openmetrics_text if accept == OPENMETRICS else classic_text

    body, _ = render(snapshot(), accept, families=())

    assert body == encode(registry)


def test_the_numbers_of_the_exporters_own_process_are_the_client_librarys_of_now() -> None:
    shown = Exposition(())
    list(shown.pieces(snapshot())[0])
    ballast = bytearray(b"x") * (64 << 20)

    with open("/dev/null"), open("/dev/null"):
        page = b"".join(shown.pieces(snapshot())[0]).decode()
        theirs = _Own().numbers()

    assert ballast
    ours = {s.name: s.value for metric in parse_classic(page) for s in metric.samples}
    assert ours.keys() == theirs.keys()
    assert ours["process_open_fds"] == theirs["process_open_fds"] - 1  # which counts the one that it opens
    for name in ("process_max_fds", "process_start_time_seconds", "python_info"):
        assert ours[name] == theirs[name]
    assert ours["process_virtual_memory_bytes"] == pytest.approx(theirs["process_virtual_memory_bytes"], 0.1)
    assert ours["process_resident_memory_bytes"] == pytest.approx(
        theirs["process_resident_memory_bytes"], abs=32 << 20
    )
    assert ours["process_cpu_seconds_total"] == pytest.approx(theirs["process_cpu_seconds_total"], abs=1.0)


class _Broken:
    """A collector with a defect, as the client library's has where /proc shows no limits."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        raise UnboundLocalError("max_fds")


@FORMATS
def test_a_defect_in_what_the_process_says_of_itself_costs_no_other_family(
    accept: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Broken())
    monkeypatch.setattr(exposition, "_OWN", registry)
    monkeypatch.setattr(exposition, "_logged", set())

    bodies = [render(snapshot(), accept)[0] for _ in range(2)]

    assert all(b"\nbrimline_build_info{" in body for body in bodies)
    assert all(body.endswith(b"# EOF\n") == (accept == OPENMETRICS) for body in bodies)
    assert len(caplog.records) == 1


def written(snapshot: Snapshot, accept: str, families: Iterable[Family] = METRICS) -> bytes:
    """Brimline's families as it writes them itself, without those of its own process behind them."""
    body, _ = render(snapshot, accept, families=families)
    own, _ = render(snapshot, accept, families=())
    ours, separator, _ = body.partition(own[: own.index(b"\n")])
    assert separator
    return ours + (b"# EOF\n" if accept == OPENMETRICS else b"")


@FORMATS
def test_every_family_is_written_as_the_client_library_writes_it(accept: str) -> None:
    shown = everything()

    assert written(shown, accept) == by_the_library(shown, accept)


def ours(page: bytes) -> list[bytes]:
    """The lines of a page that are not of the exporter's own process."""
    return [line for line in page.splitlines() if b"process_" not in line]


LABELS = ("target", "le_first", "zone", "a", "model")
ANY_TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(["", "%s", "%", "\ud800", '"', "\\n"])
NUMBERS = st.floats(allow_nan=True).map(lambda value: value + 0.0)  # no negative zero
COUNTS = st.floats(0, 1e15) | st.sampled_from([0.0, 1.0, 2e6, 1e21, 12345678.25])
HISTOGRAMS = st.builds(
    lambda buckets, total, count: Histogram((*buckets, (math.inf, count)), total, count),
    st.lists(st.tuples(NUMBERS.filter(math.isfinite), COUNTS), max_size=4).map(tuple),
    NUMBERS,
    COUNTS,
)
SUMS = st.builds(Sums, NUMBERS, COUNTS)


def _rows(rows: list[Row], _snapshot: Snapshot) -> list[Row]:
    return rows


@st.composite
def families_of_rows(draw: st.DrawFn) -> list[Family]:
    """Families with any labels and values."""
    families = []
    for index in range(draw(st.integers(1, 3))):
        kind: Kind = draw(st.sampled_from(["gauge", "counter", "histogram"]))
        labels = tuple(draw(st.permutations(LABELS))[: draw(st.integers(0, len(LABELS)))])
        values = NUMBERS if kind != "histogram" else HISTOGRAMS | SUMS
        rows: list[Row] = draw(
            st.lists(st.tuples(st.tuples(*(ANY_TEXT for _ in labels)), values), max_size=6)
        )
        name = f"family_{index}" + ("_total" if kind == "counter" else "")
        help_ = draw(st.text(st.characters(codec="utf-8"), max_size=12))
        families.append(Family(name, kind, help_, labels, functools.partial(_rows, rows), "load"))
    return families


@FORMATS
@settings(max_examples=60, deadline=None)
@given(families_of_rows())
def test_any_family_is_written_as_the_client_library_writes_it(accept: str, families: list[Family]) -> None:
    shown = snapshot(target("a", "full"))

    page = written(shown, accept, families)

    assert page == by_the_library(shown, accept, families)


@FORMATS
@settings(max_examples=60, deadline=None)
@given(families_of_rows(), st.data())
def test_a_page_says_nothing_of_the_page_before(
    accept: str, families: list[Family], data: st.DataObject
) -> None:
    """Some rows change from page to page, others do not; each page is as if it were the first."""
    source = [list(family.rows(snapshot())) for family in families]

    def current(index: int) -> Callable[[Snapshot], list[Row]]:
        return lambda _snapshot: source[index]

    shared = [dataclasses.replace(family, rows=current(index)) for index, family in enumerate(families)]
    shown = Exposition(shared)
    for _ in range(4):
        for index, family in enumerate(families):
            rows = list(family.rows(snapshot()))
            source[index] = data.draw(st.lists(st.sampled_from(rows), max_size=6)) if rows else []
        of = snapshot(target("a", data.draw(st.sampled_from(["sums", "full"]))))

        page = b"".join(shown.pieces(of, accept)[0])

        assert ours(page) == ours(render(of, accept, families=shared)[0])


@FORMATS
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*(st.integers(0, 2),) * 6), min_size=2, max_size=5))
def test_a_page_of_all_families_says_nothing_of_the_page_before(
    accept: str, rounds: list[tuple[int, ...]]
) -> None:
    """Whatever of what seldom changes does change: what is told of it is told from now on."""
    [full, *others], shown = everything().targets, Exposition()
    footprints = (None, FOOTPRINT, dataclasses.replace(FOOTPRINT, fits=False, calibrated=True))
    for footprint, setting, errors, differs, name, number in rounds:
        first = msgspec.structs.replace(
            full,
            name=f"target-{name}",
            footprint=footprints[footprint],
            settings={"max_model_len": str(setting)},
            errors=dict.fromkeys(TARGET_REASONS, errors),
            mismatches={"max_model_len": differs == 1},
        )
        of = msgspec.structs.replace(everything(), targets=(first, *others[:number]))

        page = b"".join(shown.pieces(of, accept)[0])

        assert ours(page) == ours(render(of, accept)[0])


NUMBER = st.sampled_from([None, 0.0, -1.5, 1.0, 2, 999999.5, 12345678.25, math.nan, math.inf])
COUNT_BY_REASON = st.sampled_from([None, {}, {"stop": 1.0}, {"stop": 1.0, "length": 2.0}])
RANKS = st.builds(
    RankReading,
    model=st.sampled_from(["m", "n%s"]),
    rank=st.sampled_from("01"),
    requests_running=NUMBER,
    generation_tokens_total=NUMBER,
    requests_finished_total=COUNT_BY_REASON,
    inter_token_latency_seconds=st.sampled_from([None, LATENCY]),
)
READINGS = st.none() | st.lists(RANKS, max_size=2).map(
    lambda ranks: EngineReading(engine="vllm", ranks=tuple(ranks))
)


@st.composite
def rounds_of_targets(draw: st.DrawFn) -> list[tuple[list[TargetSnapshot], str]]:
    """Page after page of targets, some with equal names, that state this or that; with a format."""
    targets = draw(
        st.lists(
            st.builds(
                TargetSnapshot,
                name=st.sampled_from("abc"),
                url=st.just("http://h"),
                histograms=st.sampled_from(["none", "sums", "full"]),
            ),
            min_size=1,
            max_size=3,
        )
    )
    accepts = draw(st.sampled_from([("",), (OPENMETRICS,), ("", OPENMETRICS)]))
    rounds = []
    for _ in range(draw(st.integers(2, 5))):
        if draw(st.sampled_from([False, False, False, True])):
            targets = [msgspec.structs.replace(each, histograms="full") for each in targets]
        read = [msgspec.structs.replace(each, reading=draw(READINGS)) for each in targets]
        times = draw(st.sampled_from([1, 1, 1, 40]))  # of more than some, nothing is kept
        rounds.append((read * times, draw(st.sampled_from(accepts))))
    return rounds


@settings(max_examples=100, deadline=None)
@given(rounds_of_targets())
def test_page_after_page_is_written_as_the_client_library_writes_it(
    rounds: list[tuple[list[TargetSnapshot], str]],
) -> None:
    shown = Exposition()
    for targets, accept in rounds:
        of = snapshot(*targets)

        page = b"".join(shown.pieces(of, accept)[0])

        of_brimline = [line for line in page.splitlines() if b"brimline_" in line]
        assert of_brimline == by_the_library(of, accept).replace(b"# EOF\n", b"").splitlines()


def test_a_page_without_rows_behind_one_with_very_many_is_written(caplog: pytest.LogCaptureFixture) -> None:
    ranks = tuple(RankReading(model="m", rank=str(number), requests_running=1.0) for number in range(5000))
    up = target_a(reading=EngineReading(engine="vllm", ranks=ranks))
    shown = Exposition()

    pages = [b"".join(shown.pieces(snapshot(each))[0]) for each in (up, target_a(), up)]

    assert [page.count(b"\nbrimline_requests_running{") for page in pages] == [5000, 0, 5000]
    assert caplog.records == []


def target_a(**fields: Any) -> TargetSnapshot:
    return TargetSnapshot(name="a", url="http://h", up=bool(fields), **fields)


@FORMATS
def test_histograms_are_those_that_each_target_is_to_have_from_now_on(accept: str) -> None:
    """A reload may change what stands where without a change of any number."""
    reading = target("x", inter_token_latency_seconds=LATENCY).reading

    def named(name: str, histograms: str, *, is_up: bool) -> TargetSnapshot:
        read = reading if is_up else None
        return TargetSnapshot(name=name, url="http://h", histograms=histograms, reading=read)

    before = snapshot(named("a", "sums", is_up=False), named("b", "full", is_up=True))
    after = snapshot(named("b", "sums", is_up=True), named("c", "full", is_up=False))
    shown = Exposition()
    list(shown.pieces(before, accept)[0])

    page = b"".join(shown.pieces(after, accept)[0])

    assert ours(page) == ours(render(after, accept)[0])
    assert b'le="1.0"' not in page


def test_every_column_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    """Else all families would be written by themselves, which takes longer, and nobody would see it."""
    render(everything())
    render(snapshot())

    assert caplog.records == []


# --- histograms

NAME = "brimline_time_to_first_token_seconds"


@FORMATS
def test_sums_alone_are_called_a_summary(accept: str) -> None:
    metrics = parsed(snapshot(target("a", "sums", time_to_first_token_seconds=LATENCY)), accept)

    assert metrics[NAME].type == "summary"
    assert {sample.name: sample.value for sample in metrics[NAME].samples} == {
        f"{NAME}_count": 4.0,
        f"{NAME}_sum": 2.5,
    }


@FORMATS
def test_a_whole_histogram_has_its_buckets(accept: str) -> None:
    metrics = parsed(snapshot(target("a", "full", time_to_first_token_seconds=LATENCY)), accept)

    assert metrics[NAME].type == "histogram"
    assert [(s.labels["le"], s.value) for s in metrics[NAME].samples if s.name == f"{NAME}_bucket"] == [
        ("0.25", 1.0),
        ("1.0", 3.0),
        ("+Inf", 4.0),
    ]


@FORMATS
def test_histograms_of_nobody_are_no_family(accept: str) -> None:
    assert NAME not in parsed(snapshot(target("a", "none", time_to_first_token_seconds=LATENCY)), accept)


@FORMATS
def test_targets_with_and_without_buckets_share_a_page(accept: str) -> None:
    targets = [target(name, name, time_to_first_token_seconds=LATENCY) for name in ("none", "sums", "full")]

    found = samples(parsed(snapshot(*targets), accept))

    def bucket(of: str, bound: str) -> float | None:
        return found.get(key(f"{NAME}_bucket", target=of, model="m", rank="0", le=bound))

    assert [bucket("full", bound) for bound in ("0.25", "1.0", "+Inf")] == [1.0, 3.0, 4.0]
    assert [bucket("sums", bound) for bound in ("0.25", "1.0", "+Inf")] == [None, None, 4.0]
    assert [bucket("none", bound) for bound in ("0.25", "1.0", "+Inf")] == [None, None, None]
    for name in ("sums", "full"):
        assert found[key(f"{NAME}_sum", target=name, model="m", rank="0")] == 2.5
        assert found[key(f"{NAME}_count", target=name, model="m", rank="0")] == 4.0


# --- values


@FORMATS
def test_nan_and_nothing_are_absent_series_and_zero_is_not(accept: str) -> None:
    shown = snapshot(
        target(
            "a",
            requests_running=0.0,
            requests_waiting=math.nan,
            kv_cache_usage_ratio=None,
            time_to_first_token_seconds=Histogram((), math.nan, 4.0),
        )
    )

    found = samples(parsed(shown, accept))

    assert found[key("brimline_requests_running", target="a", model="m", rank="0")] == 0.0
    assert not {"brimline_requests_waiting", "brimline_kv_cache_usage_ratio", f"{NAME}_sum"} & {
        n for n, _ in found
    }
    assert not any(math.isnan(value) for value in found.values())


@FORMATS
def test_large_counts_keep_every_digit(accept: str) -> None:
    found = samples(parsed(snapshot(target("a", generation_tokens_total=float(2**53))), accept))

    assert found[key("brimline_generation_tokens_total", target="a", model="m", rank="0")] == 9007199254740992


@FORMATS
def test_errors_start_at_zero_for_every_reason(accept: str) -> None:
    shown = TargetSnapshot(name="a", url="u", errors=dict.fromkeys(TARGET_REASONS, 0))

    found = samples(parsed(snapshot(shown), accept))

    assert {
        labels: value for (name, labels), value in found.items() if name == "brimline_target_errors_total"
    } == {frozenset({("target", "a"), ("reason", reason)}): 0.0 for reason in TARGET_REASONS}


# --- labels

AWKWARD = 'a "quoted" \\back\\slash\\n\nnew line \t {}=,# süß 模型'


@FORMATS
@pytest.mark.parametrize("value", [AWKWARD, "", "\\", '"', "\n", "\\n", "\\\n"])
def test_any_label_value_comes_back(accept: str, value: str) -> None:
    shown = TargetSnapshot(name="a", url="u", settings={"setting": value})

    found = samples(parsed(snapshot(shown), accept))

    assert found[key("brimline_target_setting_info", target="a", setting="setting", value=value)] == 1.0


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")))
def test_any_text_comes_back_as_a_label(value: str) -> None:
    [family] = [family for family in METRICS if family.name == "target_setting_info"]
    shown = TargetSnapshot(name="a", url="u", settings={"setting": value})

    for accept in ("", OPENMETRICS):
        found = samples(parsed(snapshot(shown), accept, [family]))
        assert list(found) == [
            key("brimline_target_setting_info", target="a", setting="setting", value=value)
        ]


@FORMATS
def test_half_a_character_costs_no_page(accept: str) -> None:
    shown = TargetSnapshot(name="a", url="u", settings={"x": "lone \ud800"})

    found = samples(parsed(snapshot(shown), accept))

    assert found[key("brimline_target_setting_info", target="a", setting="x", value="lone ?")] == 1.0


# --- defects


def family(
    name: str, rows: Iterable[Row] | None, kind: Kind = "gauge", labels: tuple[str, ...] = ("x",)
) -> Family:
    """A family with these rows; one that raises for None."""

    def give(_snapshot: Snapshot) -> Iterator[Row]:
        if rows is None:
            yield ("before",), 1.0
            raise ZeroDivisionError("a defect")
        yield from rows

    return Family(name, kind, "A family. Never absent.", labels, give, "test")


@FORMATS
def test_a_family_that_fails_costs_no_other_and_is_logged_once(
    accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"broken_{'openmetrics' if accept else 'classic'}"
    families = [family("first", [(("a",), 1.0)]), family(name, None), family("last", [(("a",), 2.0)])]

    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            found = samples(parsed(snapshot(), accept, families))

    assert found == {key("brimline_first", x="a"): 1.0, key("brimline_last", x="a"): 2.0}
    assert [record.getMessage() for record in caplog.records] == [f"family={name} could not be exposed"]


def test_a_family_that_fails_costs_none_that_is_read_with_it_and_comes_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "_logged", set())
    table = Table(("target",), lambda shown: [((each.name,), each) for each in shown.targets])

    def column(name: str, value: str | Callable[[TargetSnapshot], float]) -> Family:
        def rows(shown: Snapshot) -> Iterator[Row]:
            yield from (((each.name,), float(each.up)) for each in shown.targets)

        return Family(
            name, "gauge", "A family. Never absent.", ("target",), rows, "t", column=Column(table, value)
        )

    def give(target: TargetSnapshot) -> float:
        return 1 / len(target.url)

    def rows(shown: Snapshot) -> Iterator[Row]:
        yield from (((each.name,), give(each)) for each in shown.targets)

    broken = dataclasses.replace(column("broken", give), rows=rows)
    shown = Exposition([column("first", "up"), broken, column("last", "up")])
    sound, odd = TargetSnapshot(name="a", url="u", up=True), TargetSnapshot(name="a", url="", up=True)

    pages = [b"".join(shown.pieces(snapshot(each))[0]) for each in (sound, odd, odd, sound)]

    found = [{line.split(b"{")[0] for line in ours(page) if line.startswith(b"brimline_")} for page in pages]
    whole = {b"brimline_first", b"brimline_broken", b"brimline_last"}
    assert found == [whole, whole - {b"brimline_broken"}, whole - {b"brimline_broken"}, whole]
    assert [record.getMessage() for record in caplog.records] == [
        "tables could not be read at once: the page takes longer to write",
        "family=broken could not be exposed",
    ]


@FORMATS
def test_a_row_with_a_label_too_many_costs_its_family_only(accept: str) -> None:
    families = [family(f"odd_{len(accept)}", [(("a", "b"), 1.0)]), family("sound", [(("a",), 2.0)])]

    assert samples(parsed(snapshot(), accept, families)) == {key("brimline_sound", x="a"): 2.0}


@FORMATS
def test_a_row_whose_value_is_no_number_costs_itself_only(accept: str) -> None:
    rows: list[Row] = [(("a",), 1.0), (("b",), Sums(1.0, 1.0)), (("c",), "2")]  # type: ignore[list-item]

    found = samples(parsed(snapshot(), accept, [family("odd_value", rows)]))

    assert found == {key("brimline_odd_value", x="a"): 1.0}


@FORMATS
def test_of_rows_with_equal_labels_the_first_is_exposed(accept: str) -> None:
    rows: list[Row] = [(("a",), math.nan), (("a",), 1.0), (("b",), 2.0), (("a",), 3.0)]

    found = samples(parsed(snapshot(), accept, [family("twice", rows)]))

    assert found == {key("brimline_twice", x="a"): 1.0, key("brimline_twice", x="b"): 2.0}


@FORMATS
def test_a_family_without_rows_is_not_on_the_page(accept: str) -> None:
    body, _ = render(snapshot(), accept, families=[family("empty", [])])

    assert b"brimline_empty" not in body


# --- formats


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html,application/xhtml+xml", "text/plain"),
        (OPENMETRICS, "application/openmetrics-text"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text",
        ),
    ],
)
def test_the_format_is_the_one_that_was_asked_for(accept: str, content_type: str) -> None:
    body, answered = render(snapshot(), accept)

    assert answered.partition(";")[0] == content_type
    assert body.endswith(b"# EOF\n") is (content_type == "application/openmetrics-text")
    assert body.endswith(b"\n")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "text/plain;version=1e5",
        "text/plain;version=1!1",
        "text/plain;version=1.0.0-..",
    ],
)
def test_a_version_that_is_none_is_answered_with_classic_text(accept: str) -> None:
    body, answered = render(snapshot(), accept)

    assert answered.startswith("text/plain; version=0.0.4")
    assert body.startswith(b"# HELP ")


@given(
    kind=st.sampled_from(["text/plain", "application/openmetrics-text", "*/*"]),
    key=st.sampled_from(["version", "q", "escaping", "charset"]),
    value=st.text(st.characters(max_codepoint=255)) | st.from_regex(r"[0-9a-z.!+_-]{0,12}", fullmatch=True),
)
@settings(max_examples=300, deadline=None)
def test_no_accept_header_costs_a_scrape(kind: str, key: str, value: str) -> None:
    _, answered = Exposition(()).pieces(snapshot(), f"{kind};{key}={value}")

    assert answered.startswith(("text/plain", "application/openmetrics-text"))
