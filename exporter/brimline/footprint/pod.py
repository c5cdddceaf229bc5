"""What if a model shared the keys of distant tokens across layers (POD, arXiv 2412.02252)?

No serving engine does; the model needs training for it. So this is a question, never what a server does.
"""

from __future__ import annotations

from dataclasses import dataclass

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between

_SOURCE = "what if: POD, arXiv 2412.02252"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """Sizes of the paper's LLaMA3-8B-32K.

    first_tokens, recent_tokens: kept in full. shared_ratio: part of the (layer, K/V head) pairs that use the
    keys of a lower layer; 0.8 is what the paper's saving of 35 % at 32768 tokens implies.
    """

    first_tokens: int = 16
    recent_tokens: int = 4080
    shared_ratio: float = 0.8

    def __post_init__(self) -> None:
        if self.first_tokens < 0 or self.recent_tokens < 0:
            raise FootprintError("first_tokens and recent_tokens cannot be negative")
        if not 0 <= self.shared_ratio <= 1:
            raise FootprintError(f"shared_ratio is {self.shared_ratio}; it lies between 0 and 1")


def pod_saving_ratio(
    context_tokens: int, settings: PodSettings | None = None, *, key_dim: int = 1, value_dim: int = 1
) -> float:
    """Part of the K/V cache that is saved at a context length; 0 up to the tokens that are kept in full.

    key / (key + value) * shared_ratio * distant tokens / all tokens. Values are not shared, so with keys and
    values of one size no more than half can be saved.
    """
    settings = settings or PodSettings()
    if context_tokens < 1 or key_dim < 1 or value_dim < 0:
        raise FootprintError("context_tokens and key_dim start at 1, value_dim at 0")
    distant = max(0, context_tokens - settings.first_tokens - settings.recent_tokens)
    return key_dim / (key_dim + value_dim) * settings.shared_ratio * distant / context_tokens


def pod_kv_cache_bytes(
    kv_cache: Estimate,
    context_tokens: int,
    settings: PodSettings | None = None,
    *,
    key_dim: int = 1,
    value_dim: int = 1,
) -> Estimate:
    """The K/V cache of requests of a context length, if keys were shared. High: nothing is saved."""
    saving = pod_saving_ratio(context_tokens, settings, key_dim=key_dim, value_dim=value_dim)
    return between(kv_cache.low * (1 - saving), kv_cache.expected * (1 - saving), kv_cache.high, _SOURCE)
