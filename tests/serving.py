"""`brimline serve` as a process that is asked over HTTP, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families as parse_classic

from waiting import eventually


@dataclass(frozen=True)
class Got:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def values(self, name: str) -> dict[str, float]:
        """The samples of that name, by target."""
        return {
            sample.labels.get("target", ""): sample.value
            for family in parse_classic(self.text)
            for sample in family.samples
            if sample.name == name
        }

    def problems(self) -> dict[str, str]:
        """The problem of each target that has one."""
        return {
            sample.labels["target"]: sample.labels["reason"]
            for family in parse_classic(self.text)
            for sample in family.samples
            if sample.name == "brimline_target_problem"
        }


class Serving:
    """A process of `brimline serve`, or of another `command` that serves, once it listens.

    Ended with SIGTERM, or killed where it does not end.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        python: tuple[str, ...] = (),
        program: tuple[str, str] = ("-m", "brimline"),
        command: tuple[str, ...] = ("serve",),
        open_files: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.log_path = folder / "serve.log"
        words = [sys.executable, *python, *program, *command, *arguments]
        if open_files is not None:
            words = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *words]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {})},
            )
        try:
            match = eventually(self._listening)
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"not listening: {self.log}") from None
        self.port = int(match.group(1))

    def _listening(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.log
        return re.search(r"listening=http://127\.0\.0\.1:(\d+) ", self.log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path: str, *, method: str = "GET", **headers: str) -> Got:
        """An answer; header names with underscores for dashes."""
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            return take(connection)

    def metrics(self, **headers: str) -> Got:
        got = self.ask("/metrics", **headers)
        assert got.status == 200
        return got

    def reload(self) -> Got:
        return self.ask("/-/reload", method="POST")

    def terminate(self, *, within: float) -> int:
        """The exit status. Raises AssertionError where the process does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {within:g} s after SIGTERM") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def take(connection: http.client.HTTPConnection) -> Got:
    response = connection.getresponse()
    body = response.read()
    return Got(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def write_config(folder: Path, targets: Mapping[str, object], **more: object) -> Path:
    """A configuration file (JSON is YAML) of targets by name; a target is its url or a mapping of keys."""
    entries = [
        {"name": name, **(settings if isinstance(settings, dict) else {"url": settings})}
        for name, settings in targets.items()
    ]
    path = folder / "brimline.yaml"
    settings = {"listen": "127.0.0.1:0", "gpu": {"backend": "none"}, "scrape_timeout": "30s", **more}
    # One key on each line, so that an error's line number can be told.
    path.write_text(json.dumps({**settings, "targets": entries}, indent=1))
    return path


def serving(
    folder: Path,
    targets: Mapping[str, object],
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    **more: object,
) -> Serving:
    """A process that serves these targets, with more keys of the configuration."""
    config = str(write_config(folder, targets, **more))
    return Serving(folder, "--config", config, *arguments, environ=environ)
