"""The systemd unit, as systemd itself reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deployment import DEPLOY

UNIT = DEPLOY / "systemd/brimline.service"
WORST_EXPOSURE = 2.5  # of 10: what systemd calls OK begins below 4.9


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unit with a program that is there: systemd looks for it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    folder = tmp_path_factory.mktemp("systemd")
    program = folder / "brimline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = folder / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/brimline/bin/brimline", str(program)))
    return copy


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def settings() -> dict[str, list[str]]:
    """What the unit sets, by key."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    done = analyze("verify", unit)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_finds_nothing_wrong_with_the_documented_drop_in(unit: Path, tmp_path: Path) -> None:
    [drop_in] = re.findall(r"```ini\n(.*?)```", (DEPLOY.parent / "docs/deploy.md").read_text(), re.DOTALL)
    copy = tmp_path / UNIT.name
    copy.write_text(unit.read_text())
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    text = drop_in.replace("/opt/brimline/bin/brimline", str(unit.with_name("brimline")))
    (folder / "override.conf").write_text(text)

    done = analyze("verify", copy)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (folder / "override.conf").write_text(text.replace("LoadCredential=", "LoadCredentials="))
    assert "LoadCredentials" in analyze("verify", copy).stderr  # the drop-in was read


def test_the_documented_drop_in_hands_over_what_its_web_configuration_names() -> None:
    text = (DEPLOY.parent / "docs/deploy.md").read_text()
    [drop_in] = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    [web] = re.findall(r"```yaml\n# web.yaml.*?\n(.*?)```", text, re.DOTALL)

    handed_over = set(re.findall(r"LoadCredential=([\w.]+):/etc/brimline/\1$", drop_in, re.MULTILINE))
    assert handed_over == {"web.yaml", *re.findall(r"_file: ([\w.]+)", web)}


def test_systemd_would_name_a_key_that_is_none(unit: Path, tmp_path: Path) -> None:
    """The check above checks something."""
    wrong = tmp_path / "brimline.service"
    wrong.write_text(unit.read_text().replace("ProtectHome=", "ProtectHouse="))

    assert "ProtectHouse" in analyze("verify", wrong).stderr


def test_little_is_exposed(unit: Path) -> None:
    done = analyze("security", "--offline=true", unit)

    found = re.search(r"exposure level for brimline\.service: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= WORST_EXPOSURE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DynamicUser", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("NoNewPrivileges", "yes"),
        ("PrivateTmp", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("CapabilityBoundingSet", ""),
        ("LimitCORE", "0"),
        ("MemoryMax", "256M"),
        ("TimeoutStopSec", "5"),
        ("DevicePolicy", "closed"),
    ],
)
def test_it_is_hardened(key: str, value: str) -> None:
    assert settings()[key] == [value]


def test_only_the_nodes_of_nvml_are_open() -> None:
    assert all(device.startswith("char-nvidia") for device in settings()["DeviceAllow"])
    assert "PrivateDevices" not in settings()


def test_a_refused_configuration_is_not_tried_again() -> None:
    assert settings()["Restart"] == ["always"]
    assert settings()["RestartPreventExitStatus"] == ["2"]
    assert settings()["StartLimitIntervalSec"] == ["0"]
    assert settings()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
