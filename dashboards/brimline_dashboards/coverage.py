"""Families of the catalog that no board shows, each with the reason. A test holds the boards to it."""

from __future__ import annotations

from collections.abc import Mapping

# By name without the prefix. What stands on a board through a recorded series is shown.
UNUSED: Mapping[str, str] = {
    "discovery_errors_total": "of files and pods only; BrimlineConfigReloadFailed tells of the trouble",
    "discovery_last_success_timestamp_seconds": "the age of a list that BrimlineConfigReloadFailed tells of",
    "discovery_targets": "the targets themselves stand on the boards, wherever they come from",
    "discovery_up": "BrimlineConfigReloadFailed stands on it, and leads to the board of exporters",
    "gpu_power_limit_watts": "tells `brimline ab` whether two GPUs of one name are alike",
    "target_settings_complete": "tells `brimline ab` whether a setting that both variants lack is equal",
}
