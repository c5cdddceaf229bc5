"""What the documents say is what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from brimline.ab.experiment import parse as parse_experiment
from brimline.catalog import BY_NAME
from brimline.cli import COMMANDS
from brimline.cli.comparing import ab
from brimline.compared import as_json
from brimline.config import NOT_YET, Config, GpuConfig, Target, parse
from brimline.web_config import HttpServer, RateLimit, TlsServer, WebFile, load_web_config
from certificates import Authority
from reports import report

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()


def test_generated_documents_are_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "tools/generate_docs.py", "--check"], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stderr


def test_every_metric_that_the_readme_names_is_exported() -> None:
    names = set(re.findall(r"brimline_([a-z_]+)", README))

    assert names
    assert names <= set(BY_NAME)


@pytest.mark.parametrize("kind", [Config, GpuConfig, Target])
def test_every_configuration_key_is_documented(kind: type[msgspec.Struct]) -> None:
    undocumented = [f.name for f in msgspec.structs.fields(kind) if f"{f.name}:" not in CONFIGURATION]

    # gpu.path belongs to recordings, which the demo alone makes.
    assert undocumented in ([], ["path"])


def test_the_documented_configuration_is_accepted() -> None:
    [block] = re.findall(r"```yaml\n(listen: .*?)```", CONFIGURATION, re.DOTALL)

    assert parse(block).targets[0].name == "chat-a"


def test_the_documented_web_configuration_is_accepted(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(tls_server_config:.*?)```", CONFIGURATION, re.DOTALL)
    authority = Authority()
    authority.issue(["localhost"]).write(tmp_path, "server")
    (tmp_path / "clients.pem").write_bytes(authority.certificate)
    (tmp_path / "web.yaml").write_text(block)

    assert list(load_web_config(tmp_path / "web.yaml").users) == ["prometheus"]


@pytest.mark.parametrize("kind", [TlsServer, HttpServer, RateLimit, WebFile])
def test_every_key_of_the_web_configuration_is_documented(kind: type[msgspec.Struct]) -> None:
    names = [field.name for field in msgspec.structs.fields(kind)]

    assert [name for name in names if not re.search(rf"\b{name}\b", CONFIGURATION)] == []


def test_the_readme_configuration_is_accepted() -> None:
    [block] = re.findall(r"```yaml\n(# brimline.yaml.*?)```", README, re.DOTALL)

    assert [target.name for target in parse(block).targets] == ["chat-a", "chat-b"]


def test_keys_of_later_features_are_not_documented_as_working() -> None:
    for key in NOT_YET:
        assert f"{key.rpartition('.')[2]}:" not in CONFIGURATION.replace("processes: ", "")


def test_the_readmes_prediction_and_plan_run_as_they_are_written() -> None:
    [block] = re.findall(r"```\n(model=exporter/.*?)```", README, re.DOTALL)
    [plan] = re.findall(r"^brimline plan \$model.*$", README, re.MULTILINE)
    commands = [line for line in (*block.splitlines(), plan) if line.strip()]
    script = "\n".join(("set -e", 'brimline() { "$PYTHON" -m brimline "$@"; }', *commands))

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert len(commands) == 4
    assert "Memory of one GPU" in done.stdout


def test_every_install_of_an_extra_names_its_pip() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for at in re.finditer(r"pip install", path.read_text()):
            before = path.read_text()[: at.start()]
            assert before.endswith(("/bin/", "-m ")), path


def test_every_command_is_in_the_readme() -> None:
    assert {name for name in COMMANDS if f"brimline {name}" not in README} == set()


def test_the_readme_experiment_is_accepted_and_takes_about_ten_lines() -> None:
    [block] = re.findall(r"```yaml\n# experiment.yaml\n(.*?)```", README, re.DOTALL)

    experiment = parse_experiment(block, now=1_796_630_400.0)  # a week later
    assert (experiment.name, experiment.baseline.name) == ("kv-dtype", "bf16")
    assert len(block.splitlines()) <= 11


def test_every_command_of_ab_and_option_of_run_is_documented() -> None:
    documented = (ROOT / "docs/ab-outputs.md").read_text()

    assert {name for name in ab.commands if f"`brimline ab {name}" not in documented} == set()
    options = [one.opts[0] for one in ab.commands["run"].params if one.param_type_name == "option"]
    assert {
        option for option in options if f"`{option}" not in documented and option not in documented
    } == set()


def test_every_key_of_a_report_is_documented() -> None:
    documented = (ROOT / "docs/ab-outputs.md").read_text()

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert {key for key in keys(as_json(report())) if f'"{key}"' not in documented} == set()


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())

    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / "tests" / file).read_text()
    ]
    assert len(named) > 60
    assert missing == []
