"""How a checkpoint is quantized, from the quantization_config of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brimline.footprint.architecture import Quantization
from brimline.footprint.hf_settings import MAX_WIDTH, Settings


def quantization_of_config(config: Mapping[str, Any], source: str) -> Quantization | None:
    """What quantization_config says; None where there is none.

    Raises FootprintError for a method not known here: its bytes would be a guess. Sources: vLLM 0.32,
    model_executor/layers/quantization/*.py from_config; compressed-tensors 0.17, quant_scheme.py.
    """
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, dict) or not stated:
        return None
    settings = Settings(stated, f"{source}: quantization_config")
    method = str(stated.get("quant_method") or "").lower()
    if not method and "quant_algo" in stated:
        method = "modelopt"
    skipped = _skipped(stated)
    head = bool(stated.get("lm_head") is True)
    kv_cache = _quantized_kv_cache(stated)
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto-round", "intel/auto-round"):
        family = "awq" if "awq" in method else "gptq"
        group = stated.get("group_size", stated.get("q_group_size", 128))
        return Quantization(
            method=family,
            bits=settings.count("bits", "w_bit", default=4, most=16),
            group=group if isinstance(group, int) and 0 < group <= MAX_WIDTH else None,
            zeros=bool(stated.get("zero_point", True)) if family == "awq" else True,
            skipped=skipped,
            quantizes_head=head,
            kv_cache=kv_cache,
        )
    if method in ("fp8", "fbgemm_fp8"):
        block = _block(stated.get("weight_block_size"), settings)
        return Quantization(
            method="fp8",
            bits=8,
            block=block,
            per_channel=method == "fbgemm_fp8",
            skipped=skipped,
            kv_cache=kv_cache,
        )
    if method == "compressed-tensors":
        return _compressed_tensors(stated, settings, skipped, kv_cache)
    if method.startswith("modelopt"):
        return _modelopt(stated, method, skipped, kv_cache, settings)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return Quantization(method="mxfp4", bits=4, group=32, scale_bits=8, skipped=skipped)
    if method == "bitsandbytes":
        four = bool(stated.get("load_in_4bit", stated.get("_load_in_4bit")))
        return Quantization(
            method="bitsandbytes",
            bits=4 if four else 8,
            group=64 if four else None,
            per_channel=not four,
            double_quant=four and bool(stated.get("bnb_4bit_use_double_quant")),
            scale_bits=32,
            skipped=skipped,
        )
    raise settings.refuse(f"quant_method {method[:40]!r} is not known here")


_SKIPPED = (
    "modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "llm_int8_skip_modules"
)  # fmt: skip


def _skipped(stated: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for key in (
        "modules_to_not_convert",
        "ignored_layers",
        "ignore",
        "exclude_modules",
        "llm_int8_skip_modules",
    ):
        value = stated.get(key)
        if isinstance(value, list):
            found += [str(each) for each in value[: 1 << 16]]
    dynamic = stated.get("dynamic")  # GPTQModel: "-:" excludes
    if isinstance(dynamic, dict):
        found += [f"re:{key[2:]}" for key in dynamic if str(key).startswith("-:")]
    return tuple(found)


def _quantized_kv_cache(stated: Mapping[str, Any]) -> str | None:
    scheme = stated.get("kv_cache_scheme") or stated.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        bits = scheme.get("num_bits")
        return "fp8" if bits == 8 and scheme.get("type") == "float" else f"{scheme.get('type')}{bits}"
    return str(scheme).lower() if scheme else None


def _block(stated: Any, settings: Settings) -> tuple[int, int] | None:
    if stated is None:
        return None
    match stated:
        case [int(rows), int(columns)] if 0 < rows < MAX_WIDTH and 0 < columns < MAX_WIDTH:
            return (rows, columns)
    raise settings.refuse("weight_block_size is not a pair of sizes")


def _compressed_tensors(
    stated: Mapping[str, Any], settings: Settings, skipped: tuple[str, ...], kv_cache: str | None
) -> Quantization:
    """The scheme of the weights, from the first group that states one. All groups are taken to be alike."""
    groups = stated.get("config_groups")
    records = (
        [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    )
    schemes = [group["weights"] for group in records if isinstance(group.get("weights"), dict)]
    if not schemes:
        raise settings.refuse("config_groups states no weights")
    sizes = {str([scheme.get(key) for key in ("num_bits", "type", "group_size")]) for scheme in schemes}
    if len(sizes) > 1:
        raise settings.refuse(
            "config_groups store their weights in different types: give the folder of weights"
        )
    scheme = schemes[0]
    weights = Settings(scheme, f"{settings.source} config_groups weights")
    bits = weights.count("num_bits", most=16)
    strategy = str(scheme.get("strategy") or "tensor")
    group = weights.optional("group_size", least=-1)
    float4 = scheme.get("type") == "float" and bits == 4
    float8_groups = float4 and (group or 16) in (16, 32)
    targets = " ".join(str(record.get("targets")) for record in records)
    return Quantization(
        method="compressed-tensors",
        bits=bits,
        group=group if group and group > 0 else None,
        zeros=scheme.get("symmetric") is False,
        block=_block(scheme.get("block_structure"), settings) if strategy == "block" else None,
        per_channel=strategy == "channel",
        scale_bits=8 if float8_groups else None,
        skipped=skipped,
        quantizes_head="lm_head" in targets,
        kv_cache=kv_cache,
    )


def _modelopt(
    stated: Mapping[str, Any], method: str, skipped: tuple[str, ...], kv_cache: str | None, settings: Settings
) -> Quantization:
    nested = stated.get("quantization")
    record: Mapping[str, Any] = nested if isinstance(nested, dict) else stated
    algorithm = str(record.get("quant_algo") or method.removeprefix("modelopt_")).upper()
    skipped = skipped or _skipped(record)
    kv_cache = kv_cache or _quantized_kv_cache(record)
    if "NVFP4" in algorithm or algorithm == "FP4":
        return Quantization(
            method="nvfp4", bits=4, group=16, scale_bits=8, skipped=skipped, kv_cache=kv_cache
        )
    if "MXFP8" in algorithm:
        return Quantization(
            method="mxfp8", bits=8, group=32, scale_bits=8, skipped=skipped, kv_cache=kv_cache
        )
    if "FP8" in algorithm:
        return Quantization(
            method="fp8",
            bits=8,
            block=(128, 128) if "PB" in algorithm or "BLOCK" in algorithm else None,
            per_channel="PC" in algorithm or "CHANNEL" in algorithm,
            skipped=skipped,
            kv_cache=kv_cache,
        )
    raise settings.refuse(f"quant_algo {algorithm[:40]!r} is not known here")
