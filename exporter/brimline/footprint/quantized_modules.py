"""Which modules of a checkpoint are stored quantized, and how."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from brimline.errors import FootprintError
from brimline.footprint.architecture import Quantization

if TYPE_CHECKING:
    from brimline.footprint.module_patterns import Effort, Pattern, Patterns

_MAX_PATTERNS = 2000
_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"layers\\?\.(\d+)\\?\.")
# A digit of a number, which may have more: such a pattern tells some layers from others without naming one.
_ONE_DIGIT = re.compile(r"\\d(?![+*])")


class Modules:
    """Modules that a list of names and patterns means.

    A plain entry means the module of that name, wherever it stands, and all within it; entries with `*` match
    as file names do; `re:` starts a regular expression, matched from the front (compressed-tensors 0.17,
    utils/match.py). Raises FootprintError for a pattern that cannot be read, and for more work than the
    effort allows.
    """

    def __init__(self, entries: Iterable[str], effort: Effort | None = None) -> None:
        listed = list(dict.fromkeys(entries))
        starts = {entry for entry in listed if _is_start(entry)}
        patterns = [
            entry for entry in listed if entry.startswith("re:") or ("*" in entry and entry not in starts)
        ]
        self._starts = tuple(entry[:-1] for entry in starts)
        self._plain = frozenset(listed).difference(starts, patterns)
        self._first_words = frozenset(entry.partition(".")[0] for entry in self._plain)
        if len(patterns) > _MAX_PATTERNS:
            raise FootprintError(
                f"quantization_config: {len(patterns)} patterns name modules, more than are read"
            )
        # Patterns of one layer by its number; of every layer under None; of some layers under "".
        self._patterns = _read(patterns, effort) if patterns else {}
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
        everywhere = self._patterns.get(None)
        if everywhere is not None:
            alike = _NUMBER.sub("0", name)
            if alike not in self._known:
                self._known[alike] = everywhere.matches(alike)
            if self._known[alike]:
                return True
        layer = _LAYER.search(name)
        tried = (self._patterns.get(where) for where in dict.fromkeys(("", layer[1] if layer else "")))
        return any(patterns.matches(name) for patterns in tried if patterns is not None)


def _read(entries: Iterable[str], effort: Effort | None) -> dict[str | None, Patterns]:
    """Patterns by the layer that they are of."""
    # Imported late: most models need no patterns.
    from brimline.footprint.module_patterns import Effort, Patterns, glob, regular_expression

    grouped: dict[str | None, list[Pattern]] = {}
    for entry in entries:
        read = regular_expression(entry[3:]) if entry.startswith("re:") else glob(entry)
        grouped.setdefault(_where(entry), []).append(read)
    effort = effort or Effort()
    return {where: Patterns(listed, effort) for where, listed in grouped.items()}


def _is_start(entry: str) -> bool:
    """True where an entry is the beginning of names and a star behind it."""
    return entry.endswith("*") and not entry.startswith("re:") and not set(entry[:-1]) & set("*?[")


def _where(entry: str) -> str | None:
    """The number of the layer that a pattern is of; None where it names no number; "" for all others."""
    layers = _LAYER.findall(entry)
    if len(layers) == 1 and not _NUMBER.search(_LAYER.sub("", entry)):
        return str(layers[0])
    return "" if _NUMBER.search(entry) or _ONE_DIGIT.search(entry) else None


class Schemes:
    """How each module of a checkpoint is stored. experts: whether the model has any."""

    def __init__(self, quantization: Quantization, *, experts: bool) -> None:
        self._base, self._experts = quantization, experts
        from brimline.footprint.module_patterns import Effort  # late, as above

        effort = Effort()
        self._skipped = Modules(quantization.skipped, effort)
        self._targets = Modules(quantization.targets, effort) if quantization.targets else None
        self._others = [(Modules(other.targets, effort), other) for other in quantization.others]
        listed = (quantization.skipped, quantization.targets, *(one.targets for one in quantization.others))
        # True where a number stands in any entry, so that layers of one kind may be stored differently.
        self.names_layers = any(_where(entry) is not None for entries in listed for entry in entries)

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
