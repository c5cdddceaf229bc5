"""GPUs by name: how much memory they have, how fast they read it, how fast they compute.

A live reading of NVML goes before this table. Bandwidth of 3.35 TB/s is 3.35e12 bytes per second. NVML's
totals of H100, A100, L40S, B300, RTX 4090 and RTX PRO 6000 stand in published logs and in aiconfigurator's
tables; the others are what nvidia-smi prints in published output, not checked on a machine here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact
from brimline.footprint.constants import GIB, MIB, constant
from brimline.spelling import known_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU.

    memory_bytes: total as NVML says it. visible_bytes: what CUDA shows to a program, without what the driver
    keeps. bandwidth_bytes_per_second: of its memory; flops_per_second: dense, 16 bits; None where not known.
    assumption: what a loose name was taken to mean, a sentence.
    """

    name: str
    memory_bytes: int
    visible_bytes: Estimate
    bandwidth_bytes_per_second: float | None
    flops_per_second: float | None = None
    source: str = ""
    assumption: str | None = None


def visible_bytes(total_bytes: int, reserved_bytes: int | None = None) -> Estimate:
    """CUDA-visible bytes of a GPU: NVML's total less what its memory-v2 call names `reserved`.

    H100: 81,559 - 551 MiB = 79.11 GiB. Where only memory v1 answers, reserved_bytes is None and the bounds
    are wide: drivers keep 0.2 to 1.1 %. Raises FootprintError for more reserved than there is.
    """
    if reserved_bytes is not None:
        if not 0 <= reserved_bytes <= total_bytes:
            raise FootprintError(f"{reserved_bytes} reserved bytes of {total_bytes} cannot be")
        return exact(total_bytes - reserved_bytes, "NVML total less reserved")
    kept = constant("nvml_reserved_ratio")
    return between(
        total_bytes * (1 - kept.high),
        total_bytes * (1 - kept.expected),
        total_bytes * (1 - kept.low),
        f"NVML total less what drivers reserve ({kept.source})",
    )


def _gpu(
    name: str,
    memory_mib: int,
    terabytes_per_second: float,
    teraflops: float | None,
    source: str,
    *,
    visible_mib: tuple[int, int, int] | None = None,
) -> Gpu:
    total = memory_mib * MIB
    seen = visible_bytes(total)
    if visible_mib is not None:
        low, expected, high = visible_mib
        seen = between(low * MIB, expected * MIB, high * MIB, "start-up logs of vLLM on this GPU")
    return Gpu(
        name=name,
        memory_bytes=total,
        visible_bytes=seen,
        bandwidth_bytes_per_second=terabytes_per_second * 1e12,
        flops_per_second=None if teraflops is None else teraflops * 1e12,
        source=source,
    )


_AIC = "bandwidth: aiconfigurator 0.12, systems; FLOP/s: NVIDIA's data sheet, dense"
_SHEET = "maker's data sheet"
_H100_VISIBLE = (81008, 81080, 81231)  # 551, 479 and 328 MiB less than 81,559

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("H100 SXM", 81559, 3.35, 989, _AIC, visible_mib=_H100_VISIBLE),
        _gpu("H100 PCIe", 81559, 2.0, 756, _AIC, visible_mib=_H100_VISIBLE),
        _gpu("H100 NVL", 95830, 3.9, 835, _SHEET),
        _gpu("H200 SXM", 143771, 4.8, 989, _AIC, visible_mib=(142900, 143165, 143400)),
        _gpu("H200 NVL", 143771, 4.8, 835, _SHEET, visible_mib=(142900, 143165, 143400)),
        _gpu("A100 80GB SXM", 81920, 2.039, 312, _AIC, visible_mib=(81050, 81152, 81252)),
        _gpu("A100 80GB PCIe", 81920, 1.935, 312, _AIC, visible_mib=(81050, 81152, 81252)),
        _gpu("A100 40GB", 40960, 1.555, 312, _AIC, visible_mib=(40300, 40438, 40600)),
        _gpu("H20", 97871, 4.0, 148, _SHEET),
        _gpu("GH200", 97871, 4.0, 989, _SHEET),  # with 96 GB of HBM3; the one with 144 GB of HBM3e differs
        _gpu("A30", 24576, 0.933, 165, _AIC),
        _gpu("A10", 23028, 0.600, 125, _SHEET),
        _gpu("A10G", 23028, 0.600, None, "Hugging Face, gpu_catalog.json", visible_mib=(22480, 22600, 22740)),
        _gpu("L4", 23034, 0.300, 121, _AIC),
        _gpu("L40", 46068, 0.864, 181, _SHEET),
        _gpu("L40S", 46068, 0.864, 362, _AIC),
        _gpu("T4", 15360, 0.320, 65, "Hugging Face, gpu_catalog.json", visible_mib=(14900, 14910, 15110)),
        _gpu("V100 32GB", 32768, 0.900, 125, "Hugging Face, gpu_catalog.json"),
        _gpu("B200", 183359, 7.7, 2250, _AIC),
        _gpu("B300", 275040, 7.75, 2250, _AIC),
        _gpu("GB200", 189471, 8.0, 2500, _AIC, visible_mib=(187400, 188733, 189100)),
        _gpu("GB300", 284208, 8.0, 2500, _AIC),
        _gpu("RTX A6000", 49140, 0.768, 155, _SHEET),
        _gpu("RTX 6000 Ada", 49140, 0.960, 364, _SHEET),
        _gpu("RTX PRO 6000 Blackwell", 97887, 1.792, None, _AIC, visible_mib=(96800, 97249, 97700)),
        _gpu("RTX 3090", 24576, 0.936, 71, _SHEET, visible_mib=(24030, 24125, 24250)),
        _gpu("RTX 4090", 24564, 1.008, 165, _SHEET),
        _gpu("RTX 5090", 32607, 1.792, 209, _SHEET),
        _gpu("MI300X", 196608, 5.3, 1307, "Vultr's ROCm guide; FLOP/s: AMD's data sheet, dense"),
        _gpu("MI325X", 262144, 6.0, 1307, "Vultr's ROCm guide; FLOP/s: AMD's data sheet, dense"),
        _gpu("MI355X", 294912, 8.0, 2500, "AMD's data sheet; not checked on a machine"),
        _gpu("Arc Pro B60", 24576, 0.456, None, "aiconfigurator 0.12, systems"),
    )
}

# A name without what people and drivers write around it: vendor, brand, spaces, dashes.
_NOISE = re.compile(r"nvidia|geforce|tesla|quadro|amd|instinct|intel|graphics|generation|simulated|[^a-z0-9]")

# What is left of a name, and what it means; the sentence is there where it says less than it should.
_NAMES: dict[str, tuple[str, str | None]] = {
    "h100": ("H100 SXM", "H100 was taken as the SXM card with 80 GB"),
    "h10080gb": ("H100 SXM", "H100 80GB was taken as the SXM card"),
    "h100sxm": ("H100 SXM", None), "h100sxm5": ("H100 SXM", None), "h100sxm80gb": ("H100 SXM", None),
    "h100sxm580gb": ("H100 SXM", None), "h10080gbhbm3": ("H100 SXM", None),
    "h100pcie": ("H100 PCIe", None), "h100pcie80gb": ("H100 PCIe", None), "h10080gbpcie": ("H100 PCIe", None),
    "h100nvl": ("H100 NVL", None), "h100nvl94gb": ("H100 NVL", None), "h10094gb": ("H100 NVL", None),
    "h200": ("H200 SXM", "H200 was taken as the SXM card"),
    "h200sxm": ("H200 SXM", None), "h200141gb": ("H200 SXM", "H200 was taken as the SXM card"),
    "h200nvl": ("H200 NVL", None),
    "a100": ("A100 80GB SXM", "A100 was taken as the SXM card with 80 GB; write A100 40GB for the small one"),
    "a10080gb": ("A100 80GB SXM", "A100 80GB was taken as the SXM card"),
    "a100sxm": ("A100 80GB SXM", "A100 SXM was taken as the card with 80 GB"),
    "a100sxm480gb": ("A100 80GB SXM", None), "a100sxm80gb": ("A100 80GB SXM", None),
    "a10080gbsxm": ("A100 80GB SXM", None), "a10080gbsxm4": ("A100 80GB SXM", None),
    "a10080gbpcie": ("A100 80GB PCIe", None), "a100pcie80gb": ("A100 80GB PCIe", None),
    "a100pcie": ("A100 80GB PCIe", "A100 PCIe was taken as the card with 80 GB"),
    "a10040gb": ("A100 40GB", None), "a100sxm440gb": ("A100 40GB", None), "a100pcie40gb": ("A100 40GB", None),
    "a100sxm40gb": ("A100 40GB", None),
    "h20": ("H20", "H20 was taken as the card with 96 GB"), "h2096gb": ("H20", None),
    "gh200": ("GH200", "GH200 was taken as the one with 96 GB"), "gh20096gb": ("GH200", None),
    # Named by what memory the processor has: 480 or 120 GB.
    "gh200480gb": ("GH200", None), "gh200120gb": ("GH200", None),
    "a30": ("A30", None), "a10": ("A10", None), "a10g": ("A10G", None), "l4": ("L4", None),
    "l40": ("L40", None), "l40s": ("L40S", None),
    "rtxa6000": ("RTX A6000", None), "a6000": ("RTX A6000", None),
    "rtx6000ada": ("RTX 6000 Ada", None), "6000ada": ("RTX 6000 Ada", None),
    "t4": ("T4", None), "v100": ("V100 32GB", "V100 was taken as the card with 32 GB"),
    "v10032gb": ("V100 32GB", None), "v100sxm232gb": ("V100 32GB", None), "v100sxm332gb": ("V100 32GB", None),
    "v100pcie32gb": ("V100 32GB", None),
    "b200": ("B200", None), "b200sxm": ("B200", None), "b300": ("B300", None), "b300sxm": ("B300", None),
    "b300sxm6ac": ("B300", None),
    "gb200": ("GB200", None), "gb300": ("GB300", None),
    "rtxpro6000": ("RTX PRO 6000 Blackwell", None), "rtx6000pro": ("RTX PRO 6000 Blackwell", None),
    "rtxpro6000blackwell": ("RTX PRO 6000 Blackwell", None),
    "rtxpro6000blackwellserveredition": ("RTX PRO 6000 Blackwell", None),
    "rtxpro6000blackwellworkstationedition": ("RTX PRO 6000 Blackwell", None),
    "rtxpro6000blackwellmaxqworkstationedition": ("RTX PRO 6000 Blackwell", None),
    "rtx3090": ("RTX 3090", None), "3090": ("RTX 3090", None),
    "rtx4090": ("RTX 4090", None), "4090": ("RTX 4090", None),
    "rtx5090": ("RTX 5090", None), "5090": ("RTX 5090", None),
    "mi300x": ("MI300X", None), "mi300xoam": ("MI300X", None), "mi325x": ("MI325X", None),
    "mi325xoam": ("MI325X", None), "mi355x": ("MI355X", None), "mi355xoam": ("MI355X", None),
    "arcprob60": ("Arc Pro B60", None), "b60": ("Arc Pro B60", None),
}  # fmt: skip


def find_gpu(name: str, *, instead: str = "describe it by its memory and bandwidth") -> Gpu:
    """The GPU of a name as people write it (`h100-sxm`) or as NVML does (`NVIDIA H100 80GB HBM3`).

    Raises FootprintError for a name that is not known, and for a slice of a GPU (MIG), whose memory the name
    of the card does not tell; instead: what can be done then.
    """
    if re.search(r"\bMIG\b", name, re.IGNORECASE):
        raise FootprintError(f"{name!r} is a slice of a GPU (MIG); {instead}")
    found = _named(_NOISE.sub("", name.lower()))
    if found is None:
        raise FootprintError(f"unknown GPU {name!r}; {known_names(name, sorted(GPUS))}; or {instead}")
    return replace(GPUS[found[0]], assumption=found[1])


def _named(word: str) -> tuple[str, str | None] | None:
    """A card by its name without noise, where its memory may stand behind it: a100-80, l40s-48g."""
    match = re.fullmatch(r"(.*?\d)g?b?", word)
    whole = f"{match.group(1)}gb" if match is not None else word
    if word in _NAMES or whole in _NAMES:
        return _NAMES.get(word) or _NAMES[whole]
    for digits in (2, 3):
        card, size = whole.removesuffix("gb")[:-digits], whole.removesuffix("gb")[-digits:]
        if card in _NAMES and size.isdigit() and int(size) in _sizes(GPUS[_NAMES[card][0]]):
            return _NAMES[card][0], None
    return None


def _sizes(gpu: Gpu) -> set[int]:
    """Gigabytes that people call a card by, in units of 2^30 or of 10^9."""
    return {round(gpu.memory_bytes / GIB), math.ceil(gpu.memory_bytes / GIB), round(gpu.memory_bytes / 1e9)}


def described_gpu(
    memory_bytes: int,
    bandwidth_bytes_per_second: float | None = None,
    *,
    reserved_bytes: int | None = None,
    flops_per_second: float | None = None,
    name: str = "described",
) -> Gpu:
    """A GPU that the user describes; without a bandwidth it has no decode ceiling.

    Raises FootprintError for sizes that cannot be.
    """
    if not MIB <= memory_bytes <= 100_000 * GIB:
        raise FootprintError(f"a GPU memory of {memory_bytes} bytes cannot be; write a size such as 80GiB")
    if bandwidth_bytes_per_second is not None and not 0 < bandwidth_bytes_per_second < 1e18:
        raise FootprintError(
            f"a memory bandwidth of {bandwidth_bytes_per_second:g} bytes/s cannot be; write it as 3.35e12"
        )
    return Gpu(
        name=name,
        memory_bytes=memory_bytes,
        visible_bytes=visible_bytes(memory_bytes, reserved_bytes),
        bandwidth_bytes_per_second=bandwidth_bytes_per_second,
        flops_per_second=flops_per_second,
        source="described by the user",
    )


def live_gpu(name: str, total_bytes: int, reserved_bytes: int | None) -> Gpu:
    """A GPU as NVML describes it, with what the table knows of its kind.

    reserved_bytes: None where only memory v1 answers.
    """
    visible = visible_bytes(total_bytes, reserved_bytes)
    try:
        known = find_gpu(name)
    except FootprintError:
        return Gpu(
            name=name,
            memory_bytes=total_bytes,
            visible_bytes=visible,
            bandwidth_bytes_per_second=None,
            source="NVML",
        )
    return replace(known, memory_bytes=total_bytes, visible_bytes=visible, assumption=None)
