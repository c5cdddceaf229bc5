"""Whether a predicted server fits and starts, in words that say how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brimline import units
from brimline.footprint.gpus import Gpu
from brimline.footprint.what_if import room
from brimline.readings import Footprint

# fits: one request of full length lies beside all else, by the high bounds, and the engine starts.
# budget: the card would hold it, yet the engine refuses, or may refuse, to start within its own budget.
# too_large: the card does not hold it, by the high bounds at least.
Outcome = Literal["fits", "budget", "too_large", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comes of a prediction on a GPU. word: for people; reason: a clause, None where it fits."""

    outcome: Outcome
    word: str
    reason: str | None = None


_OF_ENGINE = {"certain": "WILL NOT START", "expected": "SHOULD NOT START", "possible": "MAY NOT START"}
_OF_CARD = {"certain": "DOES NOT FIT", "expected": "DOES NOT FIT", "possible": "MAY NOT FIT"}


def judged(footprint: Footprint, gpu: Gpu | None) -> Verdict:
    """The verdict of a footprint on its GPU."""
    if gpu is None or footprint.fits is None:
        return Verdict("unknown", "not known")
    obstacle = footprint.obstacle
    if obstacle is not None and obstacle.of == "engine":
        return Verdict("budget", _OF_ENGINE[obstacle.certainty], obstacle.text)
    if obstacle is not None:
        return Verdict("too_large", _OF_CARD[obstacle.certainty], obstacle.text)
    if footprint.fits and footprint.starts is not False:
        return Verdict("fits", "fits")
    return _too_large(footprint, gpu)


def _too_large(footprint: Footprint, gpu: Gpu) -> Verdict:
    """Of a card that does not hold all of it, by the high bounds at least."""
    weights = footprint.fullest.components.get("weights")
    if weights is not None and weights.expected > gpu.visible_bytes.expected:
        size, card = map(units.format_bytes, (weights.expected, gpu.visible_bytes.expected))
        return Verdict("too_large", "DOES NOT FIT", f"weights of {size} on each GPU are more than its {card}")
    left, length = room(footprint, gpu), units.format_count(footprint.kv_cache.max_model_len_tokens)
    if left.expected < 0:
        lacking = units.format_bytes(-left.expected)
        return Verdict("too_large", "DOES NOT FIT", f"one request of {length} tokens lacks {lacking}")
    # vLLM keeps one block empty beside the request.
    lacking = units.format_bytes(-left.low) if left.low < 0 else "a block"
    return Verdict(
        "too_large",
        "MAY NOT FIT",
        f"one request of {length} tokens fits as expected, but lacks {lacking} at worst",
    )
