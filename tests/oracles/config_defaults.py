"""Write down the defaults of transformers' configuration classes: config_defaults.py > FILE.

Runs in the environment of the vLLM engine (torch and transformers). Only what the reader of config.json asks
for is kept: whole numbers, flags, a few words and short lists under a name that stands in its source.
"""

# mypy: disable-error-code="import-not-found"
# transformers lives in the engine's own environment.

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

READER = Path(__file__).parents[2] / "exporter" / "brimline" / "footprint"
# Never sizes, or derived from the others by rules that the reader knows itself.
IGNORED = {
    "model_type", "layer_types", "layers_block_type", "mlp_layer_types", "tie_word_embeddings", "dtype",
}  # fmt: skip


def names_asked_for() -> set[str]:
    """Every word in the source of the reader that may be the name of a setting."""
    found: set[str] = set()
    for file in READER.glob("hf_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return found - IGNORED


def is_kept(value: Any) -> bool:
    if isinstance(value, bool | int | str):
        return True
    return isinstance(value, list | tuple) and len(value) <= 4 and all(isinstance(v, int) for v in value)


def defaults_of(kind: type[Any], asked: set[str]) -> dict[str, Any]:
    """The class's own defaults, sorted; what it computes from other settings is left to the reader."""
    found = {}
    for field in dataclasses.fields(kind):
        default = field.default
        if field.name in asked and default is not None and is_kept(default):
            found[field.name] = list(default) if isinstance(default, tuple) else default
    return dict(sorted(found.items()))


def nested(config: Any) -> dict[str, Any]:
    """The configurations within one, by their own model_type."""
    found = {}
    for value in vars(config).values():
        if isinstance(value, transformers.PreTrainedConfig):
            found[value.model_type] = value
            found |= nested(value)
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    sys.path.insert(0, str(READER.parents[1]))
    from brimline.footprint.hf_families import ALIASES, FAMILIES
    from brimline.footprint.hf_towers import _DEFAULT_TOWERS, _PROJECTORS, TOWERS

    wanted = {*FAMILIES, *ALIASES, *TOWERS, *_PROJECTORS, *(family for family, _ in _DEFAULT_TOWERS)}
    asked = names_asked_for()
    table: dict[str, dict[str, Any]] = {}
    for name in sorted(set(CONFIG_MAPPING) & wanted):
        try:
            config = CONFIG_MAPPING[name]()
        except (ImportError, ValueError):  # a class that needs another package
            continue
        for own_name, own in {**nested(config), name: config}.items():
            table.setdefault(own_name, defaults_of(type(own), asked))
    json.dump(
        {
            "generated": "by tests/oracles/config_defaults.py",
            "transformers": transformers.__version__,
            "defaults": {name: found for name, found in sorted(table.items()) if found},
        },
        sys.stdout,
        indent=1,
    )
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
