"""The status page: what stands on it for which snapshot."""

from __future__ import annotations

import re

from brimline.estimate import exact
from brimline.readings import (
    DeviceReading,
    DiscoveryReading,
    EngineReading,
    Footprint,
    GpuReading,
    KvCacheFootprint,
    MemoryAccount,
    MemoryPart,
    Problem,
    RankFootprint,
    RankReading,
    Snapshot,
    TargetSnapshot,
    Uuid,
)
from brimline.web import status_page

GIB = 1 << 30
A = Uuid("GPU-a")


def part(component: str, size: float, target: str = "chat", *, predicted: bool = False) -> MemoryPart:
    return MemoryPart(
        gpu=A,
        target=target,
        component=component,
        basis="predicted" if predicted else "measured",
        size_bytes=round(size * GIB),
    )


def target(name: str = "chat", *problems: Problem, predicted: bool = True) -> TargetSnapshot:
    weights = exact(16 * GIB, "test")
    footprint = Footprint(
        engine="vllm",
        engine_version=None,
        parameters=8,
        ranks=(RankFootprint(pipeline_stage=0, components={"weights": weights}, total=weights),),
        kv_cache=KvCacheFootprint(bytes_per_token=1.0, max_model_len_tokens=1, full_request_bytes=1),
    )
    return TargetSnapshot(
        name=name,
        url="http://h",
        up=True,
        reading=EngineReading(engine="vllm", ranks=(RankReading(model="m"),)),
        gpus=((A, "0"),),
        problems=problems,
        duration_seconds=0.01,
        footprint=footprint if predicted else None,
    )


def page(parts: list[MemoryPart], *targets: TargetSnapshot, used: int = 60) -> str:
    device = DeviceReading(
        uuid=A, index="0", total_bytes=80 * GIB, used_bytes=used * GIB, free_bytes=(80 - used) * GIB
    )
    return status_page(
        Snapshot(
            time=0.0,
            targets=targets or (target(),),
            gpu=GpuReading(up=True, devices=(device,)),
            memory=MemoryAccount(parts=tuple(parts)),
        )
    )


def widths(html: str) -> dict[str, str]:
    return dict(re.findall(r'class="part (\w+)" style="width: ([\d.]+)%"', html))


def said(html: str) -> list[str]:
    """The words beside the bar, part by part."""
    return [re.sub(r"<[^>]+>", "", item) for item in re.findall(r"<li>(.*?)</li>", html)]


def test_a_gpus_bar_is_split_by_component_and_says_each_size_and_what_is_predicted() -> None:
    html = page(
        [
            part("unaccounted", 4, "", predicted=True),
            part("weights", 16, predicted=True),
            part("kv_cache_free", 30),
            part("kv_cache_used", 10),
        ]
    )

    assert widths(html) == {
        "weights": "20.00",
        "kv_cache_used": "12.50",
        "kv_cache_free": "37.50",
        "unaccounted": "5.00",
    }
    assert said(html) == [
        "weights 16.00 GiB predicted",
        "KV cache used 10.00 GiB",
        "KV cache free 30.00 GiB",
        "unaccounted 4.00 GiB",
    ]
    assert 'class="used"' not in html


def test_less_used_than_predicted_is_said_and_what_is_in_use_is_marked() -> None:
    html = page([part("weights", 70, predicted=True), part("unaccounted", -10, "", predicted=True)])

    assert widths(html) == {"weights": "87.50", "unaccounted": "0.00"}
    assert said(html)[-1] == "unaccounted -10.00 GiB"
    assert '<div class="used" style="left: 75.0%"' in html


def test_servers_that_share_a_gpu_are_told_apart_in_its_bar() -> None:
    html = page(
        [part("weights", 16), part("weights", 4, "embed"), part("unaccounted", 40, "")],
        target(),
        target("embed"),
    )

    assert said(html) == ["chat weights 16.00 GiB", "embed weights 4.00 GiB", "unaccounted 40.00 GiB"]


def test_a_gpu_whose_use_is_not_known_has_a_plain_bar() -> None:
    html = page([])

    assert 'class="fill" style="width: 75.0%"' in html
    assert said(html) == []


def test_predicted_beside_observed_is_unfolded_but_for_many_servers() -> None:
    assert '<details data-key="chat" open>' in page([])
    assert " open>" not in page([], *(target(f"chat-{number}") for number in range(5)))
    plain = [target(f"chat-{number}", predicted=False) for number in range(5)]
    assert '<details data-key="chat" open>' in page([], target(), *plain)


def test_a_model_that_the_server_cannot_be_running_is_said_with_what_to_do() -> None:
    problem = Problem("model", "the server cannot be running /m: 141 GiB of weights; correct `model`")

    assert "model: the server cannot be running /m: 141 GiB of weights; correct `model`" in page(
        [], target("chat", problem, predicted=False)
    )


def test_pods_that_are_left_out_are_told_apart_from_a_configuration_that_was_refused() -> None:
    reading = DiscoveryReading(source="kubernetes", up=False, targets=0, problem="pod llm/a: <b>: no")

    html = status_page(Snapshot(time=0.0, targets=(), gpu=GpuReading(up=None), discovery=(reading,)))

    assert "Servers may be missing here. pod llm/a: &lt;b&gt;: no" in html
    assert "configuration file was refused" not in html
