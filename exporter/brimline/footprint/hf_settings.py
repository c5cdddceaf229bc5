"""The settings of a config.json, each read under any of its names and checked for sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brimline.errors import FootprintError

MAX_LAYERS = 1024  # the deepest published models have 126 to 200
MAX_EXPERTS = 1 << 16
MAX_WIDTH = 1 << 27  # of anything else that is counted: vocabularies, widths, heads

HIDDEN_NAMES = ("hidden_size", "n_embd", "d_model")
LAYERS_NAMES = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
HEADS_NAMES = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
KV_HEADS_NAMES = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
HEAD_DIM_NAMES = ("head_dim", "attention_head_dim", "d_kv")
INTERMEDIATE_NAMES = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "decoder_ffn_dim")
POSITIONS_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length")
EXPERTS_NAMES = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN_NAMES = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk")
SHARED_NAMES = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def shown(value: Any) -> str:
    """A value from a file, short enough for a message."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 1 << 64 else "a number of more than 19 digits"
    text = str(value) if not isinstance(value, list | dict) else f"a {type(value).__name__}"
    return repr(text[:40])


class Settings:
    """The settings of one model, each read under any of its names and checked for sense."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        source: str,
        defaults: Mapping[str, Any] | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        self.stated, self.source, self.defaults, self.own = settings, source, defaults or {}, own or {}
        self.assumed: dict[str, Any] = {}
        self._indexes: dict[str, frozenset[int]] = {}

    def over(self, own: Mapping[str, Any]) -> Settings:
        """These settings, where those of `own` win: what one layer says for itself."""
        return Settings(self.stated, self.source, self.defaults, own)

    def _said(self, name: str) -> Any:
        value = self.own.get(name) if self.own else None
        return self.stated.get(name) if value is None else value

    def get(self, *names: str) -> Any:
        """What is stated under the first name that is there; else the family's default; else None.

        A null that is stated is no default: Mistral writes so that it has no window.
        """
        for name in names:
            if (value := self._said(name)) is not None:
                return value
        for name in names:
            if name in self.defaults and name not in self.stated:
                value = self.defaults[name]
                if isinstance(value, int) and not isinstance(value, bool):
                    self.assumed[name] = value
                return value
        return None

    def refuse(self, what: str) -> FootprintError:
        return FootprintError(f"{self.source}: {what}")

    def optional(self, *names: str, least: int = 1, most: int = MAX_WIDTH) -> int | None:
        """A count, or None where it is not stated. Raises FootprintError where it is no sensible count."""
        value = self.get(*names)
        if value is None or value is False:
            return None
        said = next((name for name in names if self._said(name) is not None), names[0])
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(f"{said} is {shown(value)}, which is not a whole number")
        if not least <= value <= most:
            raise self.refuse(f"{said} is {shown(value)}; it lies between {least} and {most}")
        return int(value)

    def count(self, *names: str, default: int | None = None, least: int = 1, most: int = MAX_WIDTH) -> int:
        value = self.optional(*names, least=least, most=most)
        if value is None:
            if default is None:
                raise self.refuse(f"{names[0]} is missing")
            return default
        return value

    def number(self, name: str, default: int) -> int:
        """A count that may be 0."""
        return self.count(name, default=default, least=0)

    def flag(self, stated: bool | str) -> bool:
        """A constant, or what a setting says; `!name` is its contrary."""
        if isinstance(stated, bool):
            return stated
        value = bool(self.get(stated.removeprefix("!")))
        return not value if stated.startswith("!") else value

    def listed(self, *names: str, length: int) -> list[Any] | None:
        """A list with one entry for each layer. Raises FootprintError where it has another length."""
        value = self.get(*names)
        if not isinstance(value, list):
            return None
        if len(value) != length:
            raise self.refuse(f"{names[0]} has {len(value)} entries for {length} layers")
        return value

    def indexes(self, name: str) -> frozenset[int]:
        """Indexes of layers, as a set; empty where none are listed."""
        if name not in self._indexes:
            value = self.get(name)
            listed = value[:MAX_LAYERS] if isinstance(value, list) else []
            self._indexes[name] = frozenset(each for each in listed if isinstance(each, int))
        return self._indexes[name]

    @property
    def hidden(self) -> int:
        return self.count(*HIDDEN_NAMES, most=1 << 20)

    @property
    def layers(self) -> int:
        return self.count(*LAYERS_NAMES, most=MAX_LAYERS)

    @property
    def heads(self) -> int:
        return self.count(*HEADS_NAMES, most=1 << 16)

    @property
    def kv_heads(self) -> int:
        heads, kv_heads = self.heads, self.optional(*KV_HEADS_NAMES, most=1 << 16)
        # Falcon's older models say num_kv_heads too, and do not mean it (modeling_falcon.py).
        if self.flag("multi_query") and not self.flag("new_decoder_architecture"):
            return 1
        if kv_heads is None:
            return heads
        if heads % kv_heads:
            raise self.refuse(f"num_key_value_heads is {kv_heads}, which does not divide {heads} heads")
        return kv_heads

    @property
    def head_dim(self) -> int:
        stated = self.optional(*HEAD_DIM_NAMES)
        if stated is not None:
            return stated
        if self.hidden % self.heads:
            raise self.refuse(
                f"num_attention_heads is {self.heads}, which does not divide hidden_size {self.hidden}, "
                "and head_dim is not stated"
            )
        return self.hidden // self.heads

    def intermediate(self, index: int = 0, default: int | None = None) -> int:
        """Of a dense feed-forward part; some files list one for each layer (Gemma 3n)."""
        value = self.get("intermediate_size")
        if isinstance(value, list):
            if index >= len(value) or not isinstance(value[index], int) or not 0 < value[index] < MAX_WIDTH:
                raise self.refuse("intermediate_size does not list a sensible width for each layer")
            return int(value[index])
        return self.count(*INTERMEDIATE_NAMES, default=default)
