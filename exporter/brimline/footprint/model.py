"""The shape of a model, read from its config.json or its GGUF header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brimline.errors import FootprintError
from brimline.footprint.config_file import read_config
from brimline.footprint.gguf import read_gguf_metadata

MAX_LAYERS = 4096

__all__ = [
    "ModelShape",
    "read_config",
    "read_gguf_metadata",
    "read_shape",
    "shape_of_config",
    "shape_of_gguf",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the K/V cache depends on.

    kv_heads: K/V heads of each layer. key_dim, value_dim: elements of one head's key and value.
    dtype: the element type of the weights, as the file names it; None where it does not.
    kv_dtype: the element type of the K/V cache that the checkpoint itself asks for.
    source: the file that was read.
    """

    kv_heads: tuple[int, ...]
    key_dim: int
    value_dim: int
    dtype: str | None
    source: str
    kv_dtype: str | None = None

    @property
    def layers(self) -> int:
        return len(self.kv_heads)


def read_shape(path: Path) -> ModelShape:
    """Shape of the model at a directory, a config.json or a .gguf file.

    Raises FootprintError where there is none, or where its attention keeps something else than one K and one
    V vector per head, layer and token (then K/V bytes are not a plain product).
    """
    if path.suffix == ".gguf":
        return shape_of_gguf(read_gguf_metadata(path), str(path))
    file = path / "config.json" if path.is_dir() else path
    return shape_of_config(read_config(file), str(file))


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _layers(config: Mapping[str, Any], source: str, *names: str) -> int | None:
    layers = _count(config, *names)
    if layers is not None and layers > MAX_LAYERS:
        raise FootprintError(f"{source}: {layers} layers cannot be")
    return layers


def shape_of_config(config: Mapping[str, Any], source: str) -> ModelShape:
    """Shape from the settings of a Hugging Face config.json. Raises FootprintError as read_shape does."""
    text = config.get("text_config")
    model = text if isinstance(text, dict) and "num_hidden_layers" not in config else config
    kind = model.get("model_type", "this model")
    for name, why in (
        ("kv_lora_rank", "latent attention (MLA)"),
        ("num_kv_shared_layers", "layers that share their K/V"),
        ("mamba_d_state", "state-space layers"),
        ("ssm_state_size", "state-space layers"),
        ("linear_num_value_heads", "linear-attention layers"),
        ("attention_chunk_size", "chunked attention"),
        ("attn_type_list", "linear-attention layers"),
        ("block_configs", "layers of unequal shape"),
    ):
        if model.get(name):
            raise FootprintError(f"{source}: {kind} has {why}, so a token has no single K/V size")
    if model.get("is_encoder_decoder"):
        raise FootprintError(f"{source}: {kind} has cross-attention, so a token has no single K/V size")
    listed = model.get("layer_types")
    kinds = {str(layer) for layer in listed} if isinstance(listed, list) else set()
    if len(kinds) > 1:
        raise FootprintError(
            f"{source}: {kind} mixes {' and '.join(sorted(kinds))}, so a token has no single K/V size"
        )
    layers = _layers(model, source, "num_hidden_layers", "n_layer", "num_layers")
    heads = _count(model, "num_attention_heads", "n_head")
    width = _count(model, "hidden_size", "n_embd")
    if layers is None or heads is None:
        raise FootprintError(f"{source}: num_hidden_layers and num_attention_heads are not both there")
    # The names of vLLM 0.32, config/model.py get_total_num_kv_heads. A Falcon of the newer architecture says
    # multi_query too, and means its num_kv_heads.
    falcon = bool(model.get("new_decoder_architecture"))
    if model.get("multi_query") is True and not falcon and "num_key_value_heads" not in model:
        kv_heads = 1
    else:
        stated = _count(model, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
        kv_heads = stated or heads
    head_dim = _count(model, "head_dim", "attention_head_dim")
    if head_dim is None:
        if width is None or width % heads:
            raise FootprintError(
                f"{source}: neither head_dim nor a hidden_size that its heads divide is there"
            )
        head_dim = width // heads
    dtype = model.get("dtype") or model.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    return ModelShape(
        kv_heads=(kv_heads,) * layers,
        key_dim=head_dim,
        value_dim=head_dim,
        dtype=str(dtype).removeprefix("torch.") if dtype else None,
        kv_dtype=_checkpoint_kv_dtype(config),
        source=source,
    )


def _checkpoint_kv_dtype(config: Mapping[str, Any]) -> str | None:
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        return None
    scheme = quantization.get("kv_cache_scheme") or quantization.get("kv_cache_quant_algo")
    return "stated by the checkpoint" if scheme else None


# --- GGUF


def _per_layer(counts: Any, layers: int | None) -> tuple[int, ...] | None:
    """A count for each layer, from one for all or a list; None where it is neither."""
    listed = counts if isinstance(counts, list) else [counts] * (layers or 0)
    is_count = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in listed)
    return tuple(listed) if listed and len(listed) == layers and is_count else None


def shape_of_gguf(metadata: Mapping[str, Any], source: str) -> ModelShape:
    """Shape from GGUF metadata. Raises FootprintError as read_shape does."""
    family = metadata.get("general.architecture")
    if not isinstance(family, str):
        raise FootprintError(f"{source}: general.architecture is missing")
    for name, why in (
        ("ssm.state_size", "state-space layers"),
        ("attention.kv_lora_rank", "latent attention (MLA)"),
        ("attention.sliding_window", "sliding-window layers"),
        ("attention.shared_kv_layers", "layers that share their K/V"),
    ):
        if metadata.get(f"{family}.{name}"):
            raise FootprintError(f"{source}: {family} has {why}, so a token has no single K/V size")
    layers = _layers(metadata, source, f"{family}.block_count")
    heads = _per_layer(metadata.get(f"{family}.attention.head_count"), layers)
    stated = metadata.get(f"{family}.attention.head_count_kv")
    per_layer = heads if stated is None else _per_layer(stated, layers)
    width = _count(metadata, f"{family}.embedding_length")
    if layers is None or heads is None or per_layer is None:
        raise FootprintError(f"{source}: block_count and attention.head_count are not both there and sound")
    default = width // max(heads) if width and max(heads) else None
    key_dim = _count(metadata, f"{family}.attention.key_length") or default
    value_dim = _count(metadata, f"{family}.attention.value_length") or default
    if key_dim is None or value_dim is None:
        raise FootprintError(f"{source}: the size of an attention head is not there")
    return ModelShape(kv_heads=per_layer, key_dim=key_dim, value_dim=value_dim, dtype=None, source=source)
