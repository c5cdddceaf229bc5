"""`brimline demo`: two simulated servers, replayed GPUs, the exporter and a Prometheus, ended together."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brimline.demo.gpu_recording import LEAK_SECONDS, Scenario, write_recording
from brimline.demo.profiles import MODEL_FOLDER, PROFILES, SHORT_CONTEXT
from brimline.errors import BrimlineError
from brimline.extras import install_command

EXPORTER_PORT = 10778
PROMETHEUS_PORT = 9090
ALERTMANAGER_PORT = 9093
SERVER_PORT = 18000
START_PATIENCE = 30.0
SCRAPE_INTERVAL = "5s"
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. (simulated)"


def free_port(preferred: int) -> int:
    """The preferred port of 127.0.0.1 where it is free, else another one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise BrimlineError("no free TCP port on 127.0.0.1")


def answers(port: int, path: str) -> bool:
    """True where http://127.0.0.1:port/path answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_usable(url: str) -> bool:
    """True where a page answers 200 and has scripts that do, too.

    Debian's packages have pages without theirs, which stay empty, or one that says that there is none.
    """
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 (http, of our own making)
            address, text = answer.url, answer.read().decode(errors="replace")
        scripts = re.findall(r'<script[^>]*\ssrc="([^"]+)"', text)
        for script in scripts:
            with urllib.request.urlopen(urllib.parse.urljoin(address, script), timeout=2):  # noqa: S310
                pass
    except (OSError, http.client.HTTPException):
        return False
    return bool(scripts)


@dataclass(slots=True)
class Processes:
    """The demo's child processes. All are ended together."""

    folder: Path
    running: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a child whose output is added to NAME.log in the folder."""
        with open(self.folder / f"{name}.log", "ab") as log:
            # A session of its own: Ctrl-C reaches this process only, which then ends the children in order.
            child = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.running.append((name, child))

    def start_anew(self, name: str, last_words: str) -> None:
        """Kill a child, leave its last words in its log, and start it as before."""
        place, child = next((place, one) for place, (of, one) in enumerate(self.running) if of == name)
        child.kill()
        child.wait()
        with open(self.folder / f"{name}.log", "a", encoding="utf-8") as log:
            log.write(f"{last_words}\n")
        del self.running[place]
        self.start(name, child.args)  # type: ignore[arg-type]

    def wait_until(self, name: str, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. Raises BrimlineError where a child ends or time runs out."""
        deadline = time.monotonic() + START_PATIENCE
        while not condition():
            self.raise_if_ended()
            if time.monotonic() > deadline:
                raise BrimlineError(
                    f"{name} did not answer within {START_PATIENCE:g} s; its log:\n{self.log(name)}"
                )
            time.sleep(0.1)

    def raise_if_ended(self) -> None:
        """Raises BrimlineError, with the end of its log, where a child has ended."""
        for name, child in self.running:
            if child.poll() is not None:
                raise BrimlineError(
                    f"{name} ended with status {child.returncode}; its log:\n{self.log(name)}"
                )

    def log(self, name: str) -> str:
        """The end of a child's log."""
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """End all children: asked first, killed after five seconds."""
        for _, child in reversed(self.running):
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + 5
        for _, child in self.running:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def exporter_config(
    port: int, server_ports: Sequence[int], recording: Path, *, host: str = "127.0.0.1"
) -> str:
    """The exporter's configuration as YAML (written as JSON, which is YAML too)."""
    with open(recording, encoding="utf-8") as file:
        gpus = json.loads(file.readline())["gpus"]
    targets = []
    for number, (name, profile) in enumerate(PROFILES.items()):
        targets.append(
            {
                "name": name,
                "url": f"http://127.0.0.1:{server_ports[number]}",
                "model": str(MODEL_FOLDER),
                "gpus": [gpus[number]["uuid"]],
                "experiment": "context-window",
                "variant": profile.variant,
                "role": "candidate" if number else "baseline",
                "launch": {
                    "max_model_len": profile.max_model_len,
                    "kv_cache_dtype": profile.kv_cache_dtype,
                    "tensor_parallel_size": 1,
                },
            }
        )
    return json.dumps(
        {
            "listen": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "gpu": {"backend": "replay", "path": str(recording)},
            "targets": targets,
        },
        indent=2,
    )


def prometheus_config(
    exporter_port: int, rule_files: Sequence[Path] = (), alertmanager_port: int | None = None
) -> str:
    """Prometheus' configuration as YAML (written as JSON): the exporter is all it scrapes."""
    config: dict[str, Any] = {
        "global": {"scrape_interval": SCRAPE_INTERVAL},
        "rule_files": [str(file) for file in rule_files],
        "scrape_configs": [
            {"job_name": "brimline", "static_configs": [{"targets": [f"127.0.0.1:{exporter_port}"]}]}
        ],
    }
    if alertmanager_port is not None:
        config["alerting"] = {
            "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}]
        }
    return json.dumps(config, indent=2)


def _start_all(
    processes: Processes,
    say: Callable[[str], None],
    rules: Mapping[str, str],
    scenario: Scenario,
    listen: tuple[str, int] | None,
) -> float:
    """Start everything and say where it is. Gives when the recording began, by the monotonic clock."""
    folder = processes.folder
    server_ports = []
    for number, name in enumerate(PROFILES):
        port = free_port(SERVER_PORT + number)
        server_ports.append(port)
        processes.start(
            name, [sys.executable, "-m", "brimline.demo.vllm_server", "--port", str(port), "--profile", name]
        )
    recording = folder / "gpu.jsonl"
    write_recording(recording, scenario)
    host, exporter_port = listen or ("127.0.0.1", free_port(EXPORTER_PORT))
    config = folder / "brimline.yaml"
    config.write_text(exporter_config(exporter_port, server_ports, recording, host=host))
    for name, port in zip(PROFILES, server_ports, strict=True):
        processes.wait_until(name, lambda port=port: answers(port, "/health"))  # type: ignore[misc]
    processes.start("exporter", [sys.executable, "-m", "brimline", "serve", "--config", config])
    processes.wait_until("exporter", lambda: answers(exporter_port, "/-/ready"))
    began = time.monotonic()
    prometheus = shutil.which("prometheus")
    prometheus_port = alertmanager_port = None
    if prometheus is not None:
        prometheus_port = free_port(PROMETHEUS_PORT)
        rule_files = [folder / name for name in rules]
        for file, text in zip(rule_files, rules.values(), strict=True):
            file.write_text(text)
        alertmanager_port = _start_alertmanager(processes)
        (folder / "prometheus.yml").write_text(
            prometheus_config(exporter_port, rule_files, alertmanager_port)
        )
        # Debian's Prometheus looks for its pages in /usr/share; an unpacked one has them beside it.
        assets = Path(prometheus).parent.parent / "share/prometheus/web"
        own_assets = assets.is_dir() and not Path("/usr/share/prometheus/web").is_dir()
        processes.start(
            "prometheus",
            [
                prometheus,
                *([f"--web.local-assets={assets}/"] if own_assets else []),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{prometheus_port}",
            ],
        )
        processes.wait_until("prometheus", lambda: answers(prometheus_port, "/-/ready"))
    say("")
    say("Brimline demo: every number is SIMULATED; no GPU and no model is at work.")
    say("")
    say(f"  status page   http://127.0.0.1:{exporter_port}/")
    say(f"  metrics       http://127.0.0.1:{exporter_port}/metrics")
    if prometheus_port is not None:
        for line in prometheus_lines(prometheus_port, alertmanager_port):
            say(line)
    else:
        say("  Prometheus    not found on PATH: install it to see history")
    for name, port in zip(PROFILES, server_ports, strict=True):
        say(f"  {name:13} http://127.0.0.1:{port}/metrics")
    say("")
    say("Ctrl-C ends all of it.")
    return began


def prometheus_lines(port: int, alertmanager_port: int | None = None) -> list[str]:
    """Where history and alerts can be seen: pages where there are some, else what to type."""
    base, metric = f"http://127.0.0.1:{port}", "brimline_kv_cache_usage_ratio"
    lines = []
    graph = f"{base}/graph?g0.expr={metric}&g0.tab=0&g0.range_input=15m"
    if is_usable(graph):
        lines.append(f"  Prometheus    {graph}")
    else:
        lines.append(f"  Prometheus    {base}/api/v1/query?query={metric}")
        lines.append(f"  (no pages)    {_program('promtool')} query instant {base} {metric}")
        if importlib.util.find_spec("grafanalib") is None:
            lines.append(f"  boards need   {install_command('dashboards')}")
        preview = "dashboards --preview boards.html --last 15m --prometheus"
        lines.append(f"  boards        {sys.executable} -m brimline {preview} {base}")
    lines.append(f"  alerts        {base}/{'alerts' if is_usable(f'{base}/alerts') else 'api/v1/alerts'}")
    if alertmanager_port is not None:
        address = f"http://127.0.0.1:{alertmanager_port}"
        query = f"{_program('amtool')} alert query --alertmanager.url={address}"
        lines.append(f"  Alertmanager  {f'{address}/' if is_usable(f'{address}/') else query}")
    return lines


def _program(name: str) -> str:
    """Where a program lies; `make demo` has some on its own PATH only."""
    return shutil.which(name) or name


def _start_alertmanager(processes: Processes) -> int | None:
    """Its port; None where no Alertmanager runs here, which leaves alerts on Prometheus' own page."""
    alertmanager = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
    if alertmanager is None:
        return None
    folder = processes.folder
    port = free_port(ALERTMANAGER_PORT)
    (folder / "alertmanager.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    processes.start(
        "alertmanager",
        [
            alertmanager,
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
    )
    try:
        processes.wait_until("alertmanager", lambda: answers(port, "/-/ready"))
    except BrimlineError:
        # One that cannot start (an unpacked package without its templates) must not end the demo.
        if processes.running[-1][1].poll() is None:
            raise
        processes.running.pop()
        return None
    return port


class _Ended(Exception):  # noqa: N818 - being told to end is no error
    """A signal asked the demo to end."""


def run(
    say: Callable[[str], None],
    rules: Mapping[str, str],
    scenario: Scenario = "normal",
    listen: tuple[str, int] | None = None,
) -> None:
    """Run the demo until Ctrl-C or SIGTERM. Raises BrimlineError where a part of it cannot run.

    rules: files of Prometheus rules by name. scenario: what the replayed GPUs show. listen: host and port of
    the exporter, where they must be these; all interfaces, or one that 127.0.0.1 is reached by.
    """

    def end(_number: int, _frame: object) -> None:
        raise _Ended

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    folder = Path(tempfile.mkdtemp(prefix="brimline-demo-"))
    processes = Processes(folder)
    try:
        full_at = _start_all(processes, say, rules, scenario, listen) + LEAK_SECONDS
        while True:
            processes.raise_if_ended()
            if scenario == "leak" and time.monotonic() >= full_at:
                # The recording begins anew with an empty card, and so does the server that filled it.
                full_at += LEAK_SECONDS
                processes.start_anew(SHORT_CONTEXT.name, OUT_OF_MEMORY)
                say(f"{SHORT_CONTEXT.name} ran out of memory (simulated), and was started anew")
            time.sleep(0.5)
    except _Ended:
        say("ending …")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        processes.stop()
        shutil.rmtree(folder, ignore_errors=True)
