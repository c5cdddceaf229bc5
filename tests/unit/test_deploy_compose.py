"""The Compose file and what it mounts, read strictly by the specification and by the programs themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import brimline
from brimline.config import GpuSource, load
from deployment import DEPLOY, REPOSITORY, ask_peers
from prometheus_server import tool

FOLDER = DEPLOY / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Sources and targets of a service's volumes."""
    found = []
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            source, target = volume.split(":")[:2]
        else:
            source, target = volume["source"], volume["target"]
        found.append((source, target))
    return found


def test_every_key_is_of_the_specification() -> None:
    # The reader knows neither `<<` nor variables.
    merged = re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", yaml.safe_dump(COMPOSE, width=1000))
    wrong = merged.replace("restart: unless-stopped", "restrat: unless-stopped", 1)

    right, refused = ask_peers([{"ask": "compose", "text": text} for text in (merged, wrong)])

    assert right["error"] == ""
    assert "restrat" in refused["error"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_hardened_and_on_loopback(name: str) -> None:
    service = SERVICES[name]

    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "privileged" not in service
    if name != "vllm":
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["demo", "exporter"])
def test_our_own_run_read_only_with_a_limit_of_memory(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["mem_limit"]
    assert service["image"] == f"brimline:{brimline.__version__}"
    assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["networks"]["monitoring"]["aliases"] == ["exporter"]


def test_profiles_choose_between_the_demo_and_a_gpu() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "demo": ["demo"],
        "vllm": ["gpu"],
        "exporter": ["gpu"],
        "prometheus": None,
        "alertmanager": None,
        "grafana": None,
    }


def test_grafana_wants_a_password_and_lets_nobody_in_without() -> None:
    environment = SERVICES["grafana"]["environment"]

    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    # Only what one profile needs is not asked for with the other.
    assert TEXT.count(":?") == 1


ONCE = re.compile(r"^(?:#   )?(\(set -C; umask 077; .*\))    # once$", re.MULTILINE)
WRITTEN = [
    ONCE.findall(path.read_text()) for path in (REPOSITORY / "README.md", REPOSITORY / "docs/deploy.md")
]


def test_the_documented_command_writes_a_password_of_its_own_once(tmp_path: Path) -> None:
    [[command]] = {tuple(found) for found in [*WRITTEN, ONCE.findall(TEXT)]}
    (tmp_path / "deploy/compose").mkdir(parents=True)
    file = tmp_path / "deploy/compose/.env"

    first = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True)
    password = file.read_text()
    second = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True)

    assert first.returncode == 0, first.stderr
    # As Compose reads the file: no quotes, blanks or variables in it.
    assert re.fullmatch(r"GRAFANA_PASSWORD=[A-Za-z0-9+/]{24}\n", password)
    assert file.stat().st_mode & 0o777 == 0o600
    assert second.returncode != 0
    assert file.read_text() == password


def test_the_password_goes_neither_into_git_nor_into_an_image() -> None:
    name = "deploy/compose/.env"
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    of_image = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
    taken = [line[1:] for line in of_image if line.startswith("!")]

    assert f"/{name}" in ignored
    assert of_image[1] == "*"
    assert not [path for path in taken if name.startswith(f"{path}/")]
    # Where Compose looks for it: beside the first file that it is given.
    assert (REPOSITORY / name).parent == FOLDER
    assert name in SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]


def test_what_is_mounted_and_named_exists() -> None:
    for name, service in SERVICES.items():
        for source, _ in mounts(service):
            if source.startswith("."):
                assert (FOLDER / source).exists(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_the_server_and_the_exporter_agree_on_its_settings() -> None:
    [target] = load(FOLDER / "brimline-gpu.yaml").targets
    assert isinstance(target.gpus, GpuSource)
    assert target.gpus.file is not None

    assert target.launch_command == " ".join(["vllm serve", *SERVICES["vllm"]["command"]])
    places = {target for _, target in mounts(SERVICES["exporter"])}
    assert target.model in places
    assert str(Path(target.gpus.file).parent) in places
    assert target.gpus.file in SERVICES["vllm"]["entrypoint"][2]
    assert target.url == "http://vllm:8000"


def test_prometheus_reads_its_configuration_and_rules(tmp_path: Path) -> None:
    laid: dict[str, str] = {target: source for source, target in mounts(SERVICES["prometheus"])}
    shutil.copy(FOLDER / laid["/etc/prometheus/prometheus.yml"], tmp_path / "prometheus.yml")
    shutil.copytree(FOLDER / laid["/etc/prometheus/rules"], tmp_path / "rules")

    done = subprocess.run(
        [tool("promtool"), "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "2 rule files found" in done.stdout
    assert "exporter:10778" in (tmp_path / "prometheus.yml").read_text()


def test_alertmanager_reads_its_configuration() -> None:
    laid = {target: source for source, target in mounts(SERVICES["alertmanager"])}

    done = subprocess.run(
        [tool("amtool"), "check-config", FOLDER / laid["/etc/alertmanager"] / "alertmanager.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_boards() -> None:
    provisioning = FOLDER / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/brimline.yaml").read_text())["providers"]
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    laid = {target: path for path, target in mounts(SERVICES["grafana"])}
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])

    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == scraped
    boards = FOLDER / laid[provider["options"]["path"]]
    assert boards.resolve() == REPOSITORY / "dashboards/generated"
    assert (boards / home.name).is_file()
