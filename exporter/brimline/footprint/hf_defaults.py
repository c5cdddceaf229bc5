"""What a file leaves out: the defaults of transformers' configuration classes.

transformers writes a nested record (text_config, vision_config, audio_config) without what equals its class's
default; a file's own top level states everything that decides sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("hf_defaults.json")


def class_defaults(model_type: str) -> Mapping[str, Any]:
    """Defaults of a model's or tower's configuration class; none for one that is not known.

    Read anew each time: a model is read once, and its defaults are not worth keeping.
    """
    found = json.loads(_FILE.read_bytes())["defaults"].get(model_type)
    return found if isinstance(found, dict) else {}
