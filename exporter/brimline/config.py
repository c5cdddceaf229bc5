"""The configuration file: YAML to a frozen Config, strictly.

Every mistake is a ConfigError that reads `FILE:LINE: what; what to do` (see strict_yaml).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml

from brimline import thresholds
from brimline.engines import ENGINES
from brimline.errors import ConfigError
from brimline.spelling import known_names
from brimline.strict_yaml import Place, Schema, Source, dotted, read_struct, read_text
from brimline.strict_yaml import Seconds as Seconds  # of the configuration's types, and so read from here
from brimline.strict_yaml import Size as Size

DEFAULT_LISTEN = "127.0.0.1:10778"
SECRET_MASK = "<secret>"  # noqa: S105 - what is shown instead of one

# Keys of the published format whose feature is not in this version. Accepting them would promise what does
# not happen.
NOT_YET: dict[str, str] = {}

Role = Literal["", "baseline", "candidate"]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    pass


class GpuConfig(_Struct, frozen=True):
    """How GPU memory is read."""

    backend: Literal["nvml", "replay", "none"] = "nvml"
    path: str | None = None
    devices: Literal["all", "targets"] = "all"
    sample_interval: Seconds = Seconds(1.0)
    reserve_other: Size = Size(0)
    processes: bool = False


class BasicAuth(_Struct, frozen=True):
    """User name, and the file that holds the password (read again at each scrape)."""

    username: str
    password_file: str


class Tls(_Struct, frozen=True):
    """How the target's certificate is checked, and which one we show."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


class GpuSource(_Struct, frozen=True):
    """Where a target's GPU UUIDs come from, when they are not listed."""

    file: str | None = None
    listener: bool = False


class PidSource(_Struct, frozen=True):
    """Read the launch command of the process that listens on the target's port."""

    from_pid: bool


@functools.lru_cache(4096)  # asked for each target in each scrape
def is_loopback(url: str) -> bool:
    """True where a url leads to this machine, as far as the address tells."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Asking(_Struct, frozen=True, kw_only=True):
    """How a server is asked, and what is taken of its answers: of a target, or of all pods."""

    timeout: Seconds | None = None
    min_interval: Seconds = Seconds(0.0)
    histograms: Literal["none", "sums", "full"] | None = None
    bearer_token_file: str | None = None
    basic_auth: BasicAuth | None = None
    headers: dict[str, str] = {}
    tls: Tls | None = None


class Target(Asking, frozen=True):
    """One inference server."""

    name: str
    url: str
    metrics_path: str | None = None
    engine: str = "auto"
    model: str | None = None
    gpus: list[str | int] | GpuSource | None = None
    experiment: str = ""
    variant: str = ""
    role: Role = ""
    launch: dict[str, str | int | float | bool] | None = None
    launch_command: str | PidSource | None = None
    calibration: str | None = None

    @property
    def origin(self) -> str:
        """`scheme://host:port` without a path."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def base_path(self) -> str:
        """Path of the url that every endpoint is below; empty or starting with a slash."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """True where the server runs on this machine, as far as the address tells."""
        return is_loopback(self.url)

    @property
    def port(self) -> int:
        """TCP port of the url."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


class PodTargets(Asking, frozen=True):
    """What holds for every pod that is a target: keys of a target that annotations cannot set."""

    @property
    def has_credentials(self) -> bool:
        """True where something goes to each pod that only a trusted one may see."""
        certificate = self.tls is not None and self.tls.cert_file is not None
        return bool(self.bearer_token_file or self.basic_auth or self.headers or certificate)


class KubernetesConfig(_Struct, frozen=True):
    """Which pods are targets: those on `node` that say so by annotation."""

    node: str
    namespaces: list[str] = []
    selector: str = ""
    kubeconfig: str | None = None
    targets: PodTargets = PodTargets()


class Config(_Struct, frozen=True):
    """Everything `brimline serve` was told."""

    listen: str = DEFAULT_LISTEN
    scrape_timeout: Seconds = Seconds(5.0)
    histograms: Literal["none", "sums", "full"] = "sums"
    peak_window: Seconds = Seconds(60.0)
    gpu: GpuConfig = GpuConfig()
    models: dict[str, str] = {}
    alerts: dict[str, dict[str, bool | int | float | str]] = {}
    targets_files: list[str] = []
    kubernetes: KubernetesConfig | None = None
    targets: list[Target] = []

    def timeout_of(self, target: Target) -> float:
        """Seconds that one round gives this target."""
        return self.scrape_timeout if target.timeout is None else target.timeout

    def histograms_of(self, target: Target) -> str:
        """How much of the target's histograms is passed on; all of them for a target in an experiment."""
        return target.histograms or ("full" if target.experiment else self.histograms)


_HINTS = {
    "listen": f"HOST:PORT in quotes, such as {DEFAULT_LISTEN}",
    "gpus": "a list of GPU UUIDs or indexes, {file: PATH} or {listener: true}",
    "launch_command": 'text such as "vllm serve …", or {from_pid: true}',
}


class TargetsFile(_Struct, frozen=True):
    """A file of `targets_files`."""

    targets: list[Target]


_KEYS_OF_TARGETS: dict[Place, type[msgspec.Struct]] = {
    ("targets", 0): Target,
    ("targets", 0, "basic_auth"): BasicAuth,
    ("targets", 0, "tls"): Tls,
    ("targets", 0, "gpus"): GpuSource,
    ("targets", 0, "launch_command"): PidSource,
}
_KEYS_AT: dict[Place, type[msgspec.Struct]] = {
    **_KEYS_OF_TARGETS,
    (): Config,
    ("gpu",): GpuConfig,
    ("kubernetes",): KubernetesConfig,
    ("kubernetes", "targets"): PodTargets,
    ("kubernetes", "targets", "basic_auth"): BasicAuth,
    ("kubernetes", "targets", "tls"): Tls,
}

# Of urls and paths: some put a key behind a question mark, or in the path.
_SECRET_KEYS = frozenset({"basic_auth", "headers", "launch", "launch_command", "metrics_path", "url"})
_SCHEMA = Schema(keys_at=_KEYS_AT, hints=_HINTS, not_yet=NOT_YET, secret_keys=_SECRET_KEYS)
_SCHEMA_OF_TARGETS = Schema(
    keys_at={**_KEYS_OF_TARGETS, (): TargetsFile}, hints=_HINTS, secret_keys=_SECRET_KEYS
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")


def check_target(source: Source, target: Target, place: Place) -> None:
    """Raise ConfigError for what no type can tell of a target."""

    def refuse(key: str, what: str) -> ConfigError:
        return source.error((*place, key), what)

    if not _NAME.fullmatch(target.name):
        raise refuse(
            "name",
            f"target name {target.name!r} cannot be a label; use letters, digits and . _ : / - (at most 128)",
        )
    try:
        parts = urlsplit(target.url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if "@" in (parts.netloc if is_url else target.url):
        # The message must not repeat the secret.
        raise refuse("url", "the url holds a user name or password; use basic_auth with a password_file")
    if "?" in target.url or "#" in target.url:
        raise refuse(
            "url", "the url holds a query or a fragment; write http://HOST:PORT and use metrics_path"
        )
    if not is_url:
        raise refuse("url", "the url is not an http(s) URL; write http://HOST:PORT")
    if parts.path.rstrip("/").endswith("/metrics"):
        raise refuse("url", "the url names a page; write http://HOST:PORT and use metrics_path")
    if target.metrics_path is not None and re.search(r"[?#\s]", target.metrics_path):
        raise refuse("metrics_path", "the metrics_path holds a query, a fragment or a blank; write /metrics")
    if target.metrics_path is not None and not target.metrics_path.startswith("/"):
        raise refuse("metrics_path", "the metrics_path does not start with a slash; write /metrics")
    if target.engine not in ("auto", *ENGINES):
        raise refuse(
            "engine",
            f"unknown engine {target.engine!r}; {known_names(target.engine, ('auto', *sorted(ENGINES)))}",
        )
    for key in ("experiment", "variant"):
        value = getattr(target, key)
        if value and not _NAME.fullmatch(value):
            raise refuse(
                key, f"{key} {value!r} cannot be a label; use letters, digits and . _ : / - (at most 128)"
            )
    if target.launch is not None and target.launch_command is not None:
        raise refuse("launch_command", "launch and launch_command both stand here; keep one")
    if target.bearer_token_file is not None and target.basic_auth is not None:
        raise refuse("basic_auth", "bearer_token_file and basic_auth both stand here; keep one")
    for gpu in target.gpus if isinstance(target.gpus, list) else ():
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+", str(gpu)):
            raise refuse("gpus", f"{gpu!r} is neither a GPU's UUID nor its index; see nvidia-smi -L")
    if isinstance(target.gpus, GpuSource) and (target.gpus.file is None) == (not target.gpus.listener):
        raise refuse("gpus", "gpus names not one source; write {file: PATH} or {listener: true}")
    if target.timeout is not None and not target.timeout > 0:
        raise refuse("timeout", "a timeout of zero reads nothing; write a duration such as 5s")
    if isinstance(target.launch_command, PidSource) and not target.launch_command.from_pid:
        raise refuse("launch_command", "from_pid is false; remove launch_command or write {from_pid: true}")
    if (listens_here := isinstance(target.launch_command, PidSource)) or (
        isinstance(target.gpus, GpuSource) and target.gpus.listener
    ):
        key = "launch_command" if listens_here else "gpus"
        if not target.is_loopback:
            raise refuse(
                key, "the listening process is visible for loopback urls only; write the settings down"
            )
    if target.tls is not None:
        if parts.scheme != "https":
            raise refuse("tls", "tls settings on an http url have no effect; write https:// or remove them")
        if (target.tls.cert_file is None) != (target.tls.key_file is None):
            raise refuse("tls", "cert_file and key_file belong together; give both or neither")
    _check_headers(source, place, target.headers)


def _check_headers(source: Source, place: Place, headers: Mapping[str, str]) -> None:
    def refuse(key: str, what: str) -> ConfigError:
        return source.error((*place, key), what)

    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(
            r"[\x00-\x08\x0a-\x1f\x7f]", value
        ):
            raise refuse("headers", f"{name!r} is not a valid HTTP header; use printable characters")
        if name.lower() in ("authorization", "proxy-authorization", "cookie"):
            raise refuse(
                "headers", f"{name!r} would hold a secret in this file; use bearer_token_file or basic_auth"
            )


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPV6]:PORT` or `:PORT` (all interfaces). Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT; write {DEFAULT_LISTEN}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is not HOST:PORT; write an IPv6 address as [::1]:10778")
    return host or "0.0.0.0", int(port)


_NODE = re.compile(r"\*|\$\{[A-Za-z_][A-Za-z0-9_]*\}|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _check_kubernetes(source: Source, kubernetes: KubernetesConfig) -> None:
    place: Place = ("kubernetes",)
    if not _NODE.fullmatch(kubernetes.node):
        raise source.error(
            (*place, "node"),
            f"{kubernetes.node!r} is no node; write its name, ${{NODE_NAME}} for that of an environment "
            'variable, or "*" for all nodes',
        )
    for index, namespace in enumerate(kubernetes.namespaces):
        if not _NAMESPACE.fullmatch(namespace):
            raise source.error(
                (*place, "namespaces", index), f"{namespace!r} is no namespace; write a name such as default"
            )
    if not kubernetes.selector.isprintable():
        raise source.error(
            (*place, "selector"), "selector holds a line break or the like; write one such as app=vllm"
        )
    targets = kubernetes.targets
    inside: Place = (*place, "targets")
    if targets.bearer_token_file is not None and targets.basic_auth is not None:
        raise source.error(
            (*inside, "basic_auth"), "bearer_token_file and basic_auth both stand here; keep one"
        )
    if targets.timeout is not None and not targets.timeout > 0:
        raise source.error(
            (*inside, "timeout"), "a timeout of zero reads nothing; write a duration such as 5s"
        )
    if targets.tls is not None and (targets.tls.cert_file is None) != (targets.tls.key_file is None):
        raise source.error((*inside, "tls"), "cert_file and key_file belong together; give both or neither")
    _check_headers(source, inside, targets.headers)
    if targets.has_credentials and not kubernetes.namespaces:
        raise source.error(
            inside,
            "credentials would go to any pod that asks for it by annotation; "
            "list the namespaces whose pods may have them",
        )


# Names of other ends are what editors leave beside a file while it is edited.
_ENDS = (".yaml", ".yml", ".json")


def _check_pattern(source: Source, pattern: str, index: int) -> None:
    place: Place = ("targets_files", index)
    folder, _, name = pattern.rpartition("/")
    if any(character in folder for character in "*?["):
        raise source.error(
            place, f"{pattern!r} has a pattern in a folder's name; write patterns in the last part only"
        )
    if not name.endswith(_ENDS) or "\0" in pattern:
        raise source.error(
            place,
            f"{pattern!r} does not end in {', '.join(_ENDS[:-1])} or {_ENDS[-1]}; write one such as "
            "targets/*.yaml",
        )


def _check_targets(source: Source, targets: list[Target]) -> None:
    seen: dict[str, int] = {}
    for index, target in enumerate(targets):
        check_target(source, target, ("targets", index))
        if target.name in seen:
            first = source.lines[("targets", seen[target.name])]
            raise source.error(
                ("targets", index, "name"),
                f"the target name {target.name!r} stands twice (first on line {first}); rename one",
            )
        seen[target.name] = index


def _places(source: Source, targets: list[Target]) -> dict[str, str]:
    """Where each target stands, as FILE:LINE by its name."""
    return {
        target.name: f"{source.name}:{source.lines[('targets', index, 'name')]}"
        for index, target in enumerate(targets)
    }


def doubts(targets: Sequence[Target], places: Mapping[str, str]) -> list[str]:
    """A sentence for each target that is right by itself, but not beside the others.

    places: where they stand, FILE:LINE by name, as far as that is known.
    """
    said = []
    same: dict[tuple[object, ...], list[str]] = {}
    baselines: dict[str, dict[str, str]] = {}
    for target in targets:
        same.setdefault(_page_of(target), []).append(target.name)
        if target.experiment and target.role == "baseline":
            baselines.setdefault(target.experiment, {}).setdefault(target.variant, target.name)
    for first, *others in same.values():
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            have = "have" if len(others) > 1 else "has"
            said.append(
                f"{_behind(places.get(others[0]))}{', '.join(others[:3])}{more} {have} the url of {first}: "
                "sums count that server more than once; keep one"
            )
    for experiment, variants in baselines.items():
        if len(variants) > 1:
            *_, last = variants.values()
            said.append(
                f"{_behind(places.get(last))}experiment {experiment} has more than one baseline, the "
                f"variants {', '.join(variants)}; keep the role at one"
            )
    return said


def _behind(place: str | None) -> str:
    return "" if place is None else f"{place}: "


def _page_of(target: Target) -> tuple[object, ...]:
    """Equal for targets that are one server's page; headers may lead to another one behind the same url."""
    parts = urlsplit(target.url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return (
        *(parts.scheme, host, target.port, target.base_path),
        *(target.metrics_path, tuple(sorted(target.headers.items()))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTargets:
    """The targets of a file, and where each stands: FILE:LINE by its name."""

    targets: tuple[Target, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


def parse_targets(text: str, name: str) -> ReadTargets:
    """What a file of `targets_files` says. Raises ConfigError."""
    file, source = read_struct(text, name, TargetsFile, _SCHEMA_OF_TARGETS)
    _check_targets(source, file.targets)
    return ReadTargets(targets=tuple(file.targets), places=_places(source, file.targets))


def parse(text: str, name: str = "brimline.yaml") -> Config:
    """Config from the text of a file; `name` stands in the error messages. Raises ConfigError."""
    return _parse(text, name)[0]


def _parse(text: str, name: str) -> tuple[Config, Source]:
    config, source = read_struct(text, name, Config, _SCHEMA)
    try:
        parse_listen(config.listen)
    except ValueError as error:
        raise source.error(("listen",), str(error)) from None
    durations: tuple[tuple[Place, float, float], ...] = (
        (("scrape_timeout",), config.scrape_timeout, 0.001),
        (("peak_window",), config.peak_window, 1.0),
        (("gpu", "sample_interval"), config.gpu.sample_interval, 0.05),
    )
    for place, seconds, least in durations:
        if seconds < least:
            raise source.error(
                place,
                f"{dotted(place)} of {seconds:g}s is too short; write at least {least:g}s",
            )
    if (config.gpu.backend == "replay") != (config.gpu.path is not None):
        raise source.error(
            ("gpu",), "gpu.path names the recording of the backend replay; give both or neither"
        )
    for label in config.models:
        if not _NAME.fullmatch(label):
            raise source.error(
                ("models", label),
                f"model name {label!r} is no plain name; use letters, digits and . _ : / - (at most 128)",
            )
    for alert, keys in config.alerts.items():
        for key, value in keys.items():
            try:
                thresholds.checked(alert, key, value)
            except ValueError as error:
                raise source.error(("alerts", alert, key), f"alerts.{alert}.{key}: {error}") from None
        try:
            thresholds.check_order(alert, keys)
        except ValueError as error:
            raise source.error(("alerts", alert), f"alerts.{alert}: {error}") from None
        if alert not in thresholds.ALERTS:
            raise source.error(
                ("alerts", alert), f"unknown alert {alert!r}; {known_names(alert, thresholds.ALERTS)}"
            )
    for index, pattern in enumerate(config.targets_files):
        _check_pattern(source, pattern, index)
    if config.kubernetes is not None:
        _check_kubernetes(source, config.kubernetes)
    _check_targets(source, config.targets)
    return config, source


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A configuration file that was read; an empty one without a path.

    places: where each of its targets stands, FILE:LINE by name.
    """

    config: Config = field(default_factory=Config)
    path: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def read_config(path: Path) -> ConfigFile:
    """A configuration file. Raises ConfigError, also where it cannot be read."""
    config, source = _parse(read_text(path), str(path))
    return ConfigFile(config=config, path=path, places=_places(source, config.targets))


def load(path: Path) -> Config:
    """Config from a file. Raises ConfigError, also where the file cannot be read."""
    return read_config(path).config


def in_force(config: Config) -> Config:
    """The configuration with what holds for each target and alert where nothing was said."""
    targets = [
        msgspec.structs.replace(
            target, timeout=Seconds(config.timeout_of(target)), histograms=config.histograms_of(target)
        )
        for target in config.targets
    ]
    alerts = {
        alert: {
            "enabled": True,
            **{key: _as_written(threshold) for key, threshold in keys.items()},
            **config.alerts.get(alert, {}),
        }
        for alert, keys in thresholds.ALERTS.items()
    }
    return msgspec.structs.replace(config, targets=targets, alerts=alerts)


def _as_written(threshold: thresholds.Threshold) -> float | str:
    if threshold.kind in ("duration", "bytes", "pattern"):
        return threshold.text
    return int(threshold.default) if float(threshold.default).is_integer() else float(threshold.default)


def _encoded(value: object) -> object:
    if isinstance(value, Seconds):
        return f"{float(value):.12g}s"
    if isinstance(value, Size):
        return int(value)
    raise NotImplementedError  # pragma: no cover - msgspec hands over custom types only


def _with_defaults(value: Any) -> Any:
    """Plain objects with every key that has a value, said or not; what is nothing or empty is left out."""
    if isinstance(value, msgspec.Struct):
        value = {key: getattr(value, key) for key in value.__struct_fields__}
        return {key: _with_defaults(one) for key, one in value.items() if one not in (None, "", [], {})}
    if isinstance(value, list):
        return [_with_defaults(one) for one in value]
    return msgspec.to_builtins(value, enc_hook=_encoded)


def masked(config: Config, *, defaults: bool = False) -> str:
    """The configuration as YAML, with the values of request headers and other secrets as `<secret>`.

    defaults: all that is in force, and not only what was said.
    """
    plain = _with_defaults(in_force(config)) if defaults else msgspec.to_builtins(config, enc_hook=_encoded)
    pods = plain.get("kubernetes", {}).get("targets", {})
    if pods.get("headers"):
        pods["headers"] = dict.fromkeys(pods["headers"], SECRET_MASK)
    for target in plain.get("targets", []):
        if target.get("headers"):
            target["headers"] = dict.fromkeys(target["headers"], SECRET_MASK)
        if isinstance(target.get("launch_command"), str):
            target["launch_command"] = mask_command(target["launch_command"])
        for key in target.get("launch") or {}:
            if is_secret_setting(key):
                target["launch"][key] = SECRET_MASK
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


# Not every token is one: next_token and max_tokens are ordinary settings of these engines.
_SECRET_WORD = re.compile(
    r"(?i)^(?:token|hft)$|(?:^|[_-])(?:api|auth|access|bearer|hf|hub|id|refresh|secret|session)[_-]?tokens?(?:$|[_-])"
    r"|(?:^|[_-])(?:api|private|secret|access)[_-]?keys?(?:$|[_-])"
    r"|(?:^|[_-])(?:password|passwd|secrets?|credentials?)(?:$|[_-])"
)


def is_secret_setting(name: str) -> bool:
    """True for names such as `api_key` or `hf-token`, whose values are never shown."""
    return _SECRET_WORD.search(name) is not None


# Words of a shell command, quotes and all, and what stands between them.
_SHELL_PART = re.compile(r"""((?:\s|\\\n)+)|((?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])+|.)""", re.DOTALL)


_USERINFO = re.compile(r"://[^/\s]*@")
_NESTED = re.compile(r"[\s{:=]")


def mask_command(command: str) -> str:
    """A launch command with the values of secret options replaced by `<secret>`."""
    hide_next = False
    shown = []
    for blank, word in _SHELL_PART.findall(command):
        option, separator, _ = word.strip("\"'").partition("=")
        if blank:
            shown.append(blank)
        elif hide_next and not word.startswith("-"):
            shown.append(SECRET_MASK)
        elif is_secret_setting(option.lstrip("-")) and (separator or option.startswith("-")):
            hide_next = not separator
            shown.append(f"{option}={SECRET_MASK}" if separator else word)
        else:
            hide_next = hide_next and not option.startswith("-")
            # A nested command, a JSON value or a url may hold a secret of its own.
            nested = any(map(is_secret_setting, re.findall(r"[A-Za-z][A-Za-z0-9_-]*", word)))
            shown.append(SECRET_MASK if _USERINFO.search(word) or (nested and _NESTED.search(word)) else word)
    return "".join(shown)
