"""Families of the catalog that no board shows, each with the reason. A test holds the boards to it."""

from __future__ import annotations

from collections.abc import Mapping

# By name without the prefix. What stands on a board through a recorded series is shown.
UNUSED: Mapping[str, str] = {
    "target_settings_complete": "tells `brimline ab` whether a setting that both variants lack is equal",
}
