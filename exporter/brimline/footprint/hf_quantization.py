"""How a checkpoint is quantized, from quantization_config in its config.json or from hf_quant_config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from brimline.footprint.architecture import Quantization
from brimline.footprint.hf_modules import module_names
from brimline.footprint.hf_settings import MAX_WIDTH, Settings, shown

MAX_NAMES = 1 << 17


def quantization_of_config(config: Mapping[str, Any], source: str) -> Quantization | None:
    """What quantization_config says; None where there is none.

    Raises FootprintError for a method not known here: its bytes would be a guess. Sources: vLLM 0.32,
    model_executor/layers/quantization/*.py from_config; compressed-tensors 0.17, quant_scheme.py.
    """
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, dict) or not stated:
        return None
    return quantization_of(stated, f"{source}: quantization_config")


def quantization_of(stated: Mapping[str, Any], source: str) -> Quantization:
    """What one record says, of config.json or of hf_quant_config.json. Raises FootprintError."""
    settings = Settings(stated, source)
    nested = stated.get("quantization")
    method = str(stated.get("quant_method") or "").lower().replace("_", "-")
    if not method and ("quant_algo" in stated or isinstance(nested, dict)):
        method = "modelopt"
    method = "modelopt" if method.startswith("modelopt-") else method
    build = _METHODS.get(method)
    if build is None:
        raise settings.refuse(
            f"quant_method {shown(stated.get('quant_method'))} is not known here; "
            f"known: {', '.join(sorted(_METHODS))}"
        )
    found = build(settings)
    return replace(
        found,
        skipped=found.skipped or _skipped(stated),
        kv_cache=found.kv_cache or _quantized_kv_cache(stated),
        quantizes_head=found.quantizes_head or stated.get("lm_head") is True,
    )


_SKIPPED = (
    "modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "llm_int8_skip_modules",
    "exclude",
)  # fmt: skip


def _skipped(stated: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for key in _SKIPPED:
        value = stated.get(key)
        if isinstance(value, list):
            found += [str(each) for each in value[:MAX_NAMES]]
    # transformers matches entries as regular expressions from the front (quantizers_utils.py); without a sign
    # that only such an expression has, they are names.
    return module_names(f"re:{one}" if _is_regular(one) else one for one in found)


def _is_regular(entry: str) -> bool:
    return not entry.startswith("re:") and any(sign in entry for sign in "\\^$|(+")


def _quantized_kv_cache(stated: Mapping[str, Any]) -> str | None:
    scheme = stated.get("kv_cache_scheme") or stated.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        bits = scheme.get("num_bits")
        kind = str(scheme.get("type"))[:20]
        return "fp8" if bits == 8 and kind == "float" else f"{kind}{str(bits)[:4]}"
    return str(scheme).lower()[:40] if isinstance(scheme, str) else None


# --- Methods


def _grouped(settings: Settings, family: str) -> Quantization:
    """AWQ and GPTQ, and AutoRound, which packs as one of them and may leave single layers alone."""
    stated = settings.stated
    group = stated.get("group_size", stated.get("q_group_size", 128))
    found = Quantization(
        method=family,
        bits=settings.count("bits", "w_bit", default=4, most=16),
        group=group if isinstance(group, int) and 0 < group <= MAX_WIDTH else None,
        zeros=bool(stated.get("zero_point", True)) if family == "awq" else True,
    )
    dynamic = stated.get("dynamic")  # GPTQModel: "-:" leaves modules alone, "+:" stores them otherwise
    own = dict(list(dynamic.items())[:MAX_NAMES]) if isinstance(dynamic, dict) else {}
    skipped = [f"re:{str(key)[2:]}" for key in own if str(key).startswith("-:")]
    listed = {f"re:{str(key).removeprefix('+:')}": value for key, value in own.items() if key[:2] != "-:"}
    extra = stated.get("extra_config")  # AutoRound: settings of single layers
    if isinstance(extra, dict):
        listed |= {str(key): value for key, value in list(extra.items())[:MAX_NAMES]}
    others: dict[Quantization, list[str]] = {}
    for key, value in listed.items():
        layer = Settings(value, f"{settings.source} of {key[:60]!r}") if isinstance(value, dict) else None
        bits = layer.optional("bits", most=32) if layer is not None else None
        if bits is None:
            continue
        if bits >= 16:
            skipped.append(key)
        elif bits != found.bits:
            others.setdefault(replace(found, bits=bits), []).append(key)
    return replace(
        found,
        skipped=(*_skipped(stated), *module_names(skipped)),
        others=tuple(replace(one, targets=module_names(keys)) for one, keys in others.items()),
    )


def _awq(settings: Settings) -> Quantization:
    return _grouped(settings, "awq")


def _gptq(settings: Settings) -> Quantization:
    return _grouped(settings, "gptq")


def _auto_round(settings: Settings) -> Quantization:
    return _grouped(settings, "awq" if "awq" in str(settings.stated.get("packing_format")) else "gptq")


def _fp8(settings: Settings) -> Quantization:
    return Quantization(
        method="fp8", bits=8, block=_block(settings.stated.get("weight_block_size"), settings)
    )


def _fbgemm(_settings: Settings) -> Quantization:
    """One scale for each output (vLLM 0.32, fbgemm_fp8.py)."""
    return Quantization(method="fp8", bits=8, per_channel=True)


def _mxfp4(_settings: Settings) -> Quantization:
    return Quantization(method="mxfp4", bits=4, group=32, scale_bits=8)


def _mxfp8(_settings: Settings) -> Quantization:
    return Quantization(method="mxfp8", bits=8, group=32, scale_bits=8)


def _bitsandbytes(settings: Settings) -> Quantization:
    """4 bits in blocks of 64, their absmax in fp32 or, doubly quantized, in 8 bits; 8 bits for each row."""
    stated = settings.stated
    four = bool(stated.get("load_in_4bit", stated.get("_load_in_4bit")))
    return Quantization(
        method="bitsandbytes",
        bits=4 if four else 8,
        group=64 if four else None,
        per_channel=not four,
        double_quant=four and bool(stated.get("bnb_4bit_use_double_quant")),
        scale_bits=32,
    )


def _block(stated: Any, settings: Settings) -> tuple[int, int] | None:
    if stated is None:
        return None
    match stated:
        case [int(rows), int(columns)] if 0 < rows < MAX_WIDTH and 0 < columns < MAX_WIDTH:
            return (rows, columns)
    raise settings.refuse("weight_block_size is not a pair of sizes")


def _compressed_tensors(settings: Settings) -> Quantization:
    """The schemes of the weights of config_groups, each with its targets.

    A group whose targets name classes (Linear) is for all other layers (compressed-tensors 0.17,
    utils/match.py: names win over classes). lm_head is quantized only where it is a target.
    """
    groups = settings.stated.get("config_groups")
    records = (
        [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    )
    found: list[Quantization] = []
    for record in records[:1024]:
        if isinstance(record.get("weights"), dict):
            found.append(_compressed_group(record, settings))
    if not found:
        raise settings.refuse("config_groups states no weights")
    general = [one for one in found if not one.targets]
    if any(one != general[0] for one in general):
        raise settings.refuse("config_groups store the same layers in different types: name their targets")
    base = general[0] if general else None
    head = any("lm_head" in one.targets for one in found)
    others = tuple(one for one in found if one is not base and one.targets)
    if base is None:
        base, others = others[0], others[1:]
    if all(_is_alike(base, one) for one in others) and not base.targets:
        others = ()
    return replace(base, others=others, quantizes_head=head)


def _is_alike(first: Quantization, second: Quantization) -> bool:
    return replace(second, targets=first.targets) == first


def _compressed_group(record: Mapping[str, Any], settings: Settings) -> Quantization:
    scheme = record["weights"]
    weights = Settings(scheme, f"{settings.source} config_groups weights")
    bits = weights.count("num_bits", most=16)
    strategy = str(scheme.get("strategy") or "tensor")
    group = weights.optional("group_size", least=-1)
    is_float4 = scheme.get("type") == "float" and bits == 4
    listed = record.get("targets")
    targets = [str(each) for each in listed[:MAX_NAMES]] if isinstance(listed, list) else []
    # Names of classes have no dots and start with a capital letter.
    named = [each for each in targets if not (each[:1].isupper() and each.isidentifier())]
    return Quantization(
        method="compressed-tensors",
        bits=bits,
        group=group if group and group > 0 else None,
        zeros=scheme.get("symmetric") is False,
        block=_block(scheme.get("block_structure"), settings) if strategy == "block" else None,
        per_channel=strategy == "channel",
        scale_bits=8 if is_float4 and (group or 16) in (16, 32) else None,
        targets=module_names(named) if len(named) == len(targets) else (),
    )


def _modelopt(settings: Settings) -> Quantization:
    """NVIDIA's ModelOpt, in config.json or, nested under `quantization`, in hf_quant_config.json."""
    nested = settings.stated.get("quantization")
    record: Mapping[str, Any] = nested if isinstance(nested, dict) else settings.stated
    method = str(settings.stated.get("quant_method") or "").lower()
    algorithm = str(record.get("quant_algo") or method.removeprefix("modelopt_")).upper()
    if algorithm == "MIXED_PRECISION":
        found = _mixed_precision(record, settings)
    else:
        found = _modelopt_algorithm(algorithm, Settings(record, settings.source))
    return replace(found, skipped=_skipped(record), kv_cache=_quantized_kv_cache(record))


def _modelopt_algorithm(algorithm: str, settings: Settings) -> Quantization:
    if "NVFP4" in algorithm or algorithm == "FP4":
        group = settings.count("group_size", default=16)
        return Quantization(method="nvfp4", bits=4, group=group, scale_bits=8)
    if "MXFP8" in algorithm:
        return _mxfp8(settings)
    if "MXFP4" in algorithm:
        return _mxfp4(settings)
    if "W4A16" in algorithm or "W4A8" in algorithm or "INT4" in algorithm:
        group = settings.count("group_size", default=128)
        return Quantization(method="awq", bits=4, group=group, zeros=bool(settings.get("has_zero_point")))
    if "W8A8_SQ" in algorithm or algorithm in ("W8A16", "INT8"):
        return Quantization(method="int8", bits=8, per_channel=True)
    if "FP8" in algorithm:
        blocked = "PB" in algorithm or "BLOCK" in algorithm
        side = settings.count("group_size", default=128)
        return Quantization(
            method="fp8",
            bits=8,
            block=(side, side) if blocked else None,
            per_channel="PC" in algorithm or "CHANNEL" in algorithm,
        )
    raise settings.refuse(f"quant_algo {algorithm[:40]!r} is not known here")


def _mixed_precision(record: Mapping[str, Any], settings: Settings) -> Quantization:
    """Each module's own algorithm, under quantized_layers; what is not named there stays as it is."""
    layers = record.get("quantized_layers")
    if not isinstance(layers, dict) or not layers:
        raise settings.refuse("quantized_layers is missing, which MIXED_PRECISION needs")
    named: dict[Quantization, list[str]] = {}
    for name, own in list(layers.items())[:MAX_NAMES]:
        if not isinstance(own, dict):
            raise settings.refuse(f"quantized_layers of {str(name)[:60]!r} is no record")
        algorithm = str(own.get("quant_algo") or "").upper()
        layer = Settings(own, f"{settings.source} quantized_layers")
        named.setdefault(_modelopt_algorithm(algorithm, layer), []).append(str(name))
    first, *others = [replace(one, targets=module_names(names)) for one, names in named.items()]
    return replace(first, others=tuple(others))


_QUARK_BITS = {
    "fp8": 8.0,
    "fp4": 4.0,
    "fp6": 6.0,
    "int8": 8.0,
    "uint8": 8.0,
    "int4": 4.0,
    "uint4": 4.0,
    "mx6": 6.0,
}


def _quark(settings: Settings) -> Quantization:
    """AMD Quark: global_quant_config, and layer_quant_config for modules by name or pattern."""
    whole = settings.stated.get("global_quant_config")
    base = _quark_weight(whole, settings) if isinstance(whole, dict) else None
    if base is None:
        raise settings.refuse("global_quant_config states no weights whose type is known here")
    own = settings.stated.get("layer_quant_config")
    named: dict[Quantization, list[str]] = {}
    for name, record in list(own.items())[:MAX_NAMES] if isinstance(own, dict) else ():
        layer = _quark_weight(record, settings) if isinstance(record, dict) else None
        if layer is not None and layer != base:
            named.setdefault(layer, []).append(str(name))
    others = tuple(replace(one, targets=module_names(names)) for one, names in named.items())
    kv_cache = "fp8" if _quark_kv_is_fp8(settings) else None
    return replace(base, others=others, kv_cache=kv_cache)


def _quark_weight(record: Mapping[str, Any], settings: Settings) -> Quantization | None:
    stated = record.get("weight")
    weight = stated[0] if isinstance(stated, list) and stated else stated
    if not isinstance(weight, dict):
        return None
    dtype = str(weight.get("dtype") or "").lower()
    bits = next((bits for word, bits in _QUARK_BITS.items() if dtype.startswith(word)), None)
    if bits is None:
        raise settings.refuse(f"a weight dtype of {shown(weight.get('dtype'))} is not known here")
    scheme = str(weight.get("qscheme") or "per_tensor")
    group = Settings(weight, settings.source).optional("group_size", least=0)
    is_micro = scheme == "per_group" and (group or 32) == 32 and dtype.startswith("fp")
    return Quantization(
        method="mxfp4" if is_micro and bits == 4 else "quark",
        bits=bits,
        group=(group or 32) if scheme == "per_group" else None,
        per_channel=scheme == "per_channel",
        zeros=dtype.startswith(("int", "uint")) and weight.get("symmetric") is False,
        scale_bits=8 if is_micro else None,
    )


def _quark_kv_is_fp8(settings: Settings) -> bool:
    export, own = settings.stated.get("export"), settings.stated.get("layer_quant_config")
    groups = export.get("kv_cache_group") if isinstance(export, dict) else None
    if not isinstance(groups, list) or not isinstance(own, dict):
        return False
    for name in groups[:64]:
        record = own.get(str(name))
        output = record.get("output_tensors") if isinstance(record, dict) else None
        if isinstance(output, dict) and str(output.get("dtype")).startswith("fp8"):
            return True
    return False


def _torchao(settings: Settings) -> Quantization:
    """torchao writes its configuration's class and arguments under quant_type."""
    stated = settings.stated.get("quant_type")
    record = stated.get("default") if isinstance(stated, dict) else stated
    arguments: Any = settings.stated.get("quant_type_kwargs")
    name = str(record)
    if isinstance(record, dict):
        name, arguments = str(record.get("_type")), record.get("_data")
    options = Settings(arguments if isinstance(arguments, dict) else {}, f"{settings.source} quant_type")
    word = name.lower().replace("_", "")
    if word.startswith("float8"):
        return Quantization(method="torchao", bits=8, per_channel="PerRow" in str(arguments)[:4096])
    if word.startswith("int8") and "int4" not in word and "intx" not in word:
        return Quantization(method="torchao", bits=8, per_channel=True)
    if "int4" in word:
        group = options.count("group_size", default=128 if word.startswith("int4") else 32)
        return Quantization(method="torchao", bits=4, group=group, zeros=word.startswith("int4"))
    raise settings.refuse(f"quant_type {name[:60]!r} of torchao is not known here")


_METHODS: dict[str, Callable[[Settings], Quantization]] = {
    "awq": _awq,
    "awq-marlin": _awq,
    "auto-awq": _awq,
    "gptq": _gptq,
    "gptq-marlin": _gptq,
    "auto-gptq": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "inc": _auto_round,
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
    "gpt-oss-mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "bitsandbytes": _bitsandbytes,
    "quark": _quark,
    "torchao": _torchao,
}
