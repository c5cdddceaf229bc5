"""GPUs by name, and what of their memory a program sees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.constants import GIB, MIB
from brimline.footprint.gpus import _NAMES, GPUS, described_gpu, find_gpu, visible_bytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("H100", "H100 SXM"),
        ("h100-sxm", "H100 SXM"),
        ("h100_sxm", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("a100-40gb", "A100 40GB"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell"),
        ("AMD Instinct MI300X", "MI300X"),
        ("A100-80", "A100 80GB SXM"),
        ("A100-40", "A100 40GB"),
        ("a100-40g", "A100 40GB"),
        ("A100-SXM-80", "A100 80GB SXM"),
        ("H100-80", "H100 SXM"),
        ("H100-94GB", "H100 NVL"),
        ("H200-141", "H200 SXM"),
        ("V100-32", "V100 32GB"),
        ("L4-24GB", "L4"),
        ("L40S-48", "L40S"),
        ("RTX 4090 24GB", "RTX 4090"),
        ("MI300X-192GB", "MI300X"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
    ],
)
def test_a_gpu_is_found_by_what_people_and_drivers_call_it(name: str, expected: str) -> None:
    assert find_gpu(name).name == expected


def test_every_name_leads_to_a_gpu_and_every_gpu_has_a_name() -> None:
    assert {gpu for gpu, _ in _NAMES.values()} == set(GPUS)


@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_is_found_by_its_own_name(gpu: str) -> None:
    assert find_gpu(gpu).name == gpu


def test_a_name_that_says_too_little_says_what_was_assumed() -> None:
    assert find_gpu("H100").assumption == "H100 was taken as the SXM card with 80 GB"
    assert find_gpu("NVIDIA H100 80GB HBM3").assumption is None


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FootprintError, match=r"unknown GPU 'Z9000'; known: A10, A100 40GB, .*describe it"):
        find_gpu("Z9000")


@pytest.mark.parametrize("name", ["A100-60", "H100-8", "L4-48", "T4-80", "A10-40"])
def test_a_card_with_memory_that_it_never_had_is_not_known(name: str) -> None:
    with pytest.raises(FootprintError, match="unknown GPU"):
        find_gpu(name)


@pytest.mark.parametrize(
    ("name", "terabytes_per_second", "printed_mib"),
    # NVIDIA's data sheets; what nvidia-smi prints beside the name in published output
    [
        ("A10", 0.600, 23028),
        ("L40", 0.864, 46068),
        ("RTX A6000", 0.768, 49140),
        ("RTX 6000 Ada", 0.960, 49140),
        ("H20", 4.0, 97871),
        ("GH200", 4.0, 97871),
    ],
)
def test_bandwidth_is_the_data_sheets_and_memory_what_nvidia_smi_prints(
    name: str, terabytes_per_second: float, printed_mib: int
) -> None:
    gpu = find_gpu(name)

    assert gpu.bandwidth_bytes_per_second == terabytes_per_second * 1e12
    assert gpu.memory_bytes == printed_mib * MIB


def test_a_slice_of_a_gpu_is_refused() -> None:
    with pytest.raises(FootprintError, match="MIG"):
        find_gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb")


def test_an_h100_shows_79_11_gib_of_its_81559_mib() -> None:
    seen = visible_bytes(81559 * MIB, 551 * MIB)

    assert seen.is_exact
    assert round(seen.expected / GIB, 2) == 79.11


@pytest.mark.parametrize("logged_gib", [79.11, 79.18, 79.19, 79.22])
def test_the_visible_memory_of_an_h100_bounds_what_logs_say(logged_gib: float) -> None:
    # "Free memory on device (77.57/79.11 GiB)", vLLM PR 48601; 79.18, 79.19: llm-d; 79.22: vLLM PR 10511.
    seen = find_gpu("h100").visible_bytes

    assert seen.low <= round(logged_gib * GIB) + 5 * MIB
    assert seen.high >= round(logged_gib * GIB) - 5 * MIB


@pytest.mark.parametrize(
    ("name", "logged_gib"),
    # start-up logs of vLLM: 0.31 on an A100-80, 0.10.2 on an A100-40 and an H200
    [("A100 80GB SXM", 79.25), ("A100 40GB", 39.49), ("H200 SXM", 139.81), ("RTX PRO 6000", 94.97)],
)
def test_the_visible_memory_of_other_gpus_bounds_what_logs_say(name: str, logged_gib: float) -> None:
    seen = find_gpu(name).visible_bytes

    assert seen.low <= logged_gib * GIB <= seen.high


def test_without_the_reserved_bytes_the_bounds_hold_what_drivers_keep() -> None:
    # 328 and 551 MiB of an H100, 870 of an A100-80
    seen = visible_bytes(81559 * MIB)

    assert seen.low <= (81559 - 870) * MIB
    assert seen.high >= (81559 - 328) * MIB


def test_more_reserved_than_there_is_is_refused() -> None:
    with pytest.raises(FootprintError, match="cannot be"):
        visible_bytes(10, 11)


def test_a_gpu_may_be_described() -> None:
    gpu = described_gpu(24 * GIB, 0.3e12, reserved_bytes=0)

    assert (gpu.visible_bytes.expected, gpu.bandwidth_bytes_per_second) == (24 * GIB, 0.3e12)


@pytest.mark.parametrize(("memory", "bandwidth"), [(0, 1e12), (24 * GIB, 0), (24 * GIB, float("nan"))])
def test_a_described_gpu_has_memory_and_bandwidth(memory: int, bandwidth: float) -> None:
    with pytest.raises(FootprintError, match="cannot be"):
        described_gpu(memory, bandwidth)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_no_gpu_shows_more_than_it_has(gpu: object) -> None:
    found = find_gpu(getattr(gpu, "name", ""))

    assert found.visible_bytes.low <= found.visible_bytes.expected <= found.visible_bytes.high
    assert found.visible_bytes.high <= found.memory_bytes
    assert found.source


@settings(max_examples=50, deadline=None)
@given(st.integers(min_value=1 << 20, max_value=1 << 50))
def test_bounds_of_visible_memory_stay_in_order(total_bytes: int) -> None:
    seen = visible_bytes(total_bytes)

    assert 0 < seen.low <= seen.expected <= seen.high <= total_bytes
