"""Which modules of a checkpoint are stored quantized, and how."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable

from brimline.errors import FootprintError
from brimline.footprint.architecture import Quantization

# A repeated group, or one repetition of almost anything behind another, can take a regular expression longer
# than anybody waits.
_UNSOUND = re.compile(r"\)\s*[*+{]|(?:\.|\\[wWSD]|\])[*+}]\??(?:\.|\\[wWSD]|\[[^\]]*\])[*+{]")
_REPEATED = re.compile(r"(?:\.|\\[wWSD]|\])[*+{]")
_MAX_LENGTH = 512
_MAX_REPEATED = 3
# What it may cost to try all patterns on one name. Those of one layer are tried on its names only, those
# without a number once for all layers; of what is left only few are read.
_COSTS = {0: 1, 1: 1, 2: 10, _MAX_REPEATED: 150}
_MAX_PATTERNS, _MAX_COST_OF_ALL, _MAX_COST = 2000, 2000, 200
_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"layers\\?\.(\d+)\\?\.")


class Modules:
    """Modules that a list of names and patterns means.

    A plain entry means the module of that name, wherever it stands, and all within it; entries with `*` match
    as file names do; `re:` starts a regular expression, matched from the front (compressed-tensors 0.17,
    utils/match.py). Raises FootprintError for a pattern that cannot be read.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        listed = list(dict.fromkeys(entries))
        starts = {entry for entry in listed if _is_start(entry)}
        patterns = [
            entry for entry in listed if entry.startswith("re:") or ("*" in entry and entry not in starts)
        ]
        self._starts = tuple(entry[:-1] for entry in starts)
        self._plain = frozenset(listed).difference(starts, patterns)
        self._first_words = frozenset(entry.partition(".")[0] for entry in self._plain)
        # Patterns of one layer by its number; of every layer under None; of some layers under "".
        self._patterns: dict[str | None, list[re.Pattern[str]]] = {}
        costs: dict[str | None, int] = {}
        if len(patterns) <= _MAX_PATTERNS:
            for entry in patterns:
                where = _where(entry)
                compiled, cost = _pattern(entry)
                self._patterns.setdefault(where, []).append(compiled)
                costs[where] = costs.get(where, 0) + cost
        if len(patterns) > _MAX_PATTERNS or any(
            cost > (_MAX_COST_OF_ALL if where is None else _MAX_COST) for where, cost in costs.items()
        ):
            raise FootprintError(
                f"quantization_config: {len(patterns)} patterns name modules, more than are read"
            )
        self._known: dict[str, bool] = {}

    def __contains__(self, name: object) -> bool:
        """Whether a module is one of them. One of experts is known by the name of the first of them, too."""
        if not isinstance(name, str):
            return False
        names = [name]
        if ".experts." in name:
            one = name.replace(".experts.", ".experts.0.", 1)
            names += [one, one.replace("gate_up_proj", "gate_proj")]
        return any(map(self._is_one, names))

    def _is_one(self, name: str) -> bool:
        if self._plain:
            words = name.split(".")
            for start, word in enumerate(words):
                if word not in self._first_words:
                    continue
                for end in range(start + 1, len(words) + 1):
                    if ".".join(words[start:end]) in self._plain:
                        return True
        if name.startswith(self._starts):
            return True
        if not self._patterns:
            return False
        if None in self._patterns:
            alike = _NUMBER.sub("0", name)
            if alike not in self._known:
                self._known[alike] = any(pattern.match(alike) for pattern in self._patterns[None])
            if self._known[alike]:
                return True
        layer = _LAYER.search(name)
        tried = [*self._patterns.get("", ()), *self._patterns.get(layer[1] if layer else "", ())]
        return any(pattern.match(name) for pattern in tried)


def _is_start(entry: str) -> bool:
    """True where an entry is the beginning of names and a star behind it."""
    return entry.endswith("*") and not entry.startswith("re:") and not set(entry[:-1]) & set("*?[")


def _where(entry: str) -> str | None:
    """The number of the layer that a pattern is of; None where it names no number; "" for all others."""
    layers = _LAYER.findall(entry)
    if len(layers) == 1 and not _NUMBER.search(_LAYER.sub("", entry)):
        return str(layers[0])
    return "" if _NUMBER.search(entry) else None


def _pattern(entry: str) -> tuple[re.Pattern[str], int]:
    """The compiled pattern and what it costs to try."""
    if not entry.startswith("re:"):
        if len(entry) > _MAX_LENGTH:
            raise FootprintError(f"quantization_config: pattern {entry[:80]!r} is not read here")
        return re.compile(rf"(?:{fnmatch.translate(entry)})|(?:{fnmatch.translate(entry + '.*')})"), 1
    text = entry[3:]
    repeated = len(_REPEATED.findall(text))
    if len(text) > _MAX_LENGTH or _UNSOUND.search(text) or repeated > _MAX_REPEATED:
        raise FootprintError(f"quantization_config: pattern {text[:80]!r} is not read here")
    try:
        return re.compile(text), _COSTS[repeated]
    except (re.error, OverflowError, RecursionError):
        raise FootprintError(f"quantization_config: {text[:80]!r} is no pattern") from None


class Schemes:
    """How each module of a checkpoint is stored. experts: whether the model has any."""

    def __init__(self, quantization: Quantization, *, experts: bool) -> None:
        self._base, self._experts = quantization, experts
        self._skipped = Modules(quantization.skipped)
        self._targets = Modules(quantization.targets) if quantization.targets else None
        self._others = [(Modules(other.targets), other) for other in quantization.others]

    def of(self, name: str, part: str, *, linear: bool) -> Quantization | None:
        """The way a module is quantized; None where it stays in the model's own type. linear: a matrix."""
        base = self._base
        if base.method == "gguf":
            return base if linear or part in ("embedding", "head") else None
        if not linear or part == "embedding" or (part == "head" and not base.quantizes_head):
            return None
        # vLLM's MXFP4 reaches experts only (quantization/mxfp4.py get_quant_method).
        if base.method == "mxfp4" and self._experts and ".mlp.experts." not in name:
            return None
        if name in self._skipped:
            return None
        for modules, other in self._others:
            if name in modules:
                return other
        return base if self._targets is None or name in self._targets else None


@functools.lru_cache(maxsize=8)
def schemes(quantization: Quantization, experts: bool) -> Schemes:
    """The schemes of a checkpoint, kept for a few. Raises FootprintError for a pattern that is not read."""
    return Schemes(quantization, experts=experts)
