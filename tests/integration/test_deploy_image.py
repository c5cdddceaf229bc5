"""The image without a Docker: the steps of its Dockerfile in a plain root, which serves as it would."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prometheus_server import free_port, get_text, is_up
from waiting import eventually

REPOSITORY = Path(__file__).parent.parent.parent
DOCKERFILE = REPOSITORY / "deploy/docker/Dockerfile"
NOBODY = "65534"
pytestmark = pytest.mark.long


@dataclass
class Stage:
    """What a stage of the Dockerfile does, in order, and what it leaves to its container."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


def stages() -> list[Stage]:
    """The stages of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "FROM":
            found.append(Stage())
        elif word == "ENV":
            found[-1].environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "ARG":
            found[-1].environment |= dict([rest.split("=", 1)])
        elif word == "WORKDIR":
            found[-1].folder = rest
        elif word == "USER":
            found[-1].user = rest
        elif word == "ENTRYPOINT":
            found[-1].entrypoint = json.loads(rest)
        elif word == "HEALTHCHECK":
            found[-1].healthcheck = json.loads(rest.partition("CMD")[2])
        elif word in ("RUN", "COPY"):
            found[-1].steps.append((word, rest))
        else:
            assert word in ("LABEL", "EXPOSE", "CMD"), f"the test knows no {word}"
    return found


def private(opt: Path, command: list[str], *, read_only: bool = False) -> list[str]:
    """A command that sees that folder at /opt, in a mount namespace of its own."""
    freeze = "mount -o remount,bind,ro /opt && mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp && "
    # As in the base image; it may lie where nobody may look, such as in root's home.
    python = "" if sys.base_prefix == "/usr" else f"mount --bind {sys.base_prefix} /usr/local && "
    script = f'mount --bind "$0" /opt && {python}{freeze if read_only else ""}exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, str(opt), *command]


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt of the image, made by the steps of the build stage."""
    folder = tmp_path_factory.mktemp("opt")
    folder.chmod(0o755)
    if os.geteuid() != 0 or subprocess.run(private(folder, ["true"]), capture_output=True).returncode != 0:
        pytest.skip("no root that may mount here")
    programs = tmp_path_factory.mktemp("programs")
    # The base image calls it `python`; here it is another version, which the requirements allow, too.
    # Debian's own has no pip: ours is taken.
    base = f"{'/usr' if sys.base_prefix == '/usr' else '/usr/local'}/bin/python3"
    (programs / "python").write_text(
        f'#!/bin/sh\n[ "$2" = venv ] && exec {base} "$@"\nexec {sys.executable} "$@"\n'
    )
    (programs / "python").chmod(0o755)
    build = stages()[0]
    environment = build.environment | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(Path.home())}
    del environment["PIP_NO_CACHE_DIR"]  # it keeps the image small; here it would only cost time
    for word, rest in build.steps:
        if word == "COPY":
            *sources, target = rest.split()
            place = folder / Path(build.folder).relative_to("/opt") / target
            if target.startswith("/"):
                place = folder / Path(target).relative_to("/opt")
            for source in sources:
                _copy(REPOSITORY / source, place / Path(source).name if target.endswith("/") else place)
            continue
        step = ["sh", "-euc", f"cd {build.folder} && {rest}"]
        done = subprocess.run(
            private(folder, step), env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, place)


def as_nobody(opt: Path, command: list[str]) -> list[str]:
    """The command as the container would run it: unprivileged, in a read-only root with an empty /tmp."""
    unprivileged = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return private(opt, [*unprivileged, "--bounding-set=-all", *command], read_only=True)


def environment_of_the_image() -> dict[str, str]:
    image = stages()[-1]
    path = image.environment["PATH"].replace("$PATH", "/usr/bin:/bin")
    # A Python that was built elsewhere looks for its library there.
    return {**image.environment, "PATH": path, "LD_LIBRARY_PATH": "/usr/local/lib"}


@contextmanager
def container(opt: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The image's program with these arguments."""
    process = subprocess.Popen(
        as_nobody(opt, [*stages()[-1].entrypoint, *arguments]),
        env=environment_of_the_image(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def test_the_image_serves_as_nobody_from_a_root_that_it_cannot_write(opt: Path) -> None:
    port = free_port()
    (opt / "brimline.yaml").write_text("targets: [{name: gone, url: 'http://127.0.0.1:9'}]\n")
    check = [*stages()[-1].healthcheck, f"127.0.0.1:{port}"]

    with container(
        opt, "serve", "--config", "/opt/brimline.yaml", "--listen", f"127.0.0.1:{port}"
    ) as process:
        eventually(lambda: is_up(f"http://127.0.0.1:{port}/-/ready"))
        page = get_text(f"http://127.0.0.1:{port}/metrics")
        get_text(f"http://127.0.0.1:{port}/")
        status = Path(f"/proc/{process.pid}/status").read_text()
        healthy = eventually(
            lambda: subprocess.run(as_nobody(opt, check), env=environment_of_the_image()).returncode == 0,
        )
        process.terminate()
        said = process.communicate(timeout=60)[1]

    assert 'brimline_target_up{target="gone"} 0.0' in page
    assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
    assert "CapEff:\t0000000000000000" in status
    assert healthy
    assert process.returncode == 0
    assert "Traceback" not in said


def test_the_image_shows_the_demo(opt: Path) -> None:
    port = free_port()

    with container(opt, "demo", "--listen", f"0.0.0.0:{port}") as process:
        eventually(lambda: process.poll() is not None or is_up(f"http://127.0.0.2:{port}/-/ready"))
        page = get_text(f"http://127.0.0.2:{port}/metrics")
        process.terminate()
        process.communicate(timeout=60)

    assert 'brimline_target_up{target="long-context"} 1.0' in page
    assert process.returncode == 0


def test_the_healthcheck_fails_where_nothing_answers(opt: Path) -> None:
    check = [*stages()[-1].healthcheck, f"127.0.0.1:{free_port()}"]

    done = subprocess.run(as_nobody(opt, check), env=environment_of_the_image(), timeout=60)

    assert done.returncode == 1


def test_the_image_plans_and_writes_rules(opt: Path) -> None:
    """What the wheel must hold beside the exporter: tables, the demo's model, the rules."""
    code = (
        "from brimline.demo.profiles import MODEL_FOLDER; from brimline_dashboards.rules import files;"
        "assert (MODEL_FOLDER / 'config.json').is_file() and files(); print('whole')"
    )
    python = str(Path(stages()[-1].entrypoint[0]).with_name("python"))
    predict = [*stages()[-1].entrypoint, "predict", "--gpu", "H100", "--json"]

    whole = subprocess.run(
        as_nobody(opt, [python, "-I", "-c", code]),
        env=environment_of_the_image(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    model = REPOSITORY / "exporter/brimline/demo/llama-3.1-8b/config.json"
    shown = opt / "model.json"
    shutil.copy(model, shown)
    predicted = subprocess.run(
        as_nobody(opt, [*predict, "/opt/model.json"]),
        env=environment_of_the_image(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert whole.stdout == "whole\n", whole.stderr
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)["fits"] is True


def test_the_image_holds_neither_what_builds_it_nor_what_boards_and_comparisons_need(opt: Path) -> None:
    installed = {
        path.name.lower().replace("-", "_") for path in opt.glob("brimline/lib/python3*/site-packages/*")
    }

    assert not {"pip", "hatchling", "numpy", "scipy", "grafanalib", "matplotlib"} & installed
    assert {"brimline", "brimline_dashboards", "pynvml.py", "aiohttp", "kubernetes"} <= installed
