"""The configuration file: YAML to a frozen Config, strictly.

Every mistake is a ConfigError that reads `FILE:LINE: what; what to do`. YAML is read with the plain rules of
YAML 1.2 (`yes` and `12:30:45` stay text), without anchors, merge keys, tags or duplicate keys.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml

from brimline import thresholds, units
from brimline.errors import ConfigError
from brimline.files import NotARegularFile, open_regular

DEFAULT_LISTEN = "127.0.0.1:10778"
MAX_FILE_BYTES = 256 << 10
MAX_DEPTH = 20
SECRET_MASK = "<secret>"  # noqa: S105 - what is shown instead of one

# Keys of the published format whose feature is not in this version. Accepting them would promise what does
# not happen.
NOT_YET = {
    "targets_files": "targets from further files",
}

Engine = Literal[
    "auto", "dynamo", "llamacpp", "lmdeploy", "nim", "ray", "sglang", "tgi", "triton", "trtllm", "vllm"
]
Role = Literal["", "baseline", "candidate"]


class Seconds(float):
    """A duration; written `5s` in the file."""


class Size(int):
    """Bytes; written `2GiB` or a plain number in the file."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    pass


class GpuConfig(_Struct, frozen=True):
    """How GPU memory is read."""

    backend: Literal["nvml", "replay", "none"] = "nvml"
    path: str | None = None
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


class Target(_Struct, frozen=True):
    """One inference server."""

    name: str
    url: str
    metrics_path: str | None = None
    engine: Engine = "auto"
    model: str | None = None
    gpus: list[str | int] | GpuSource | None = None
    experiment: str = ""
    variant: str = ""
    role: Role = ""
    launch: dict[str, str | int | float | bool] | None = None
    launch_command: str | PidSource | None = None
    calibration: str | None = None
    timeout: Seconds | None = None
    min_interval: Seconds = Seconds(0.0)
    histograms: Literal["none", "sums", "full"] | None = None
    bearer_token_file: str | None = None
    basic_auth: BasicAuth | None = None
    headers: dict[str, str] = {}
    tls: Tls | None = None

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
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def port(self) -> int:
        """TCP port of the url."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


class Config(_Struct, frozen=True):
    """Everything `brimline serve` was told."""

    listen: str = DEFAULT_LISTEN
    scrape_timeout: Seconds = Seconds(5.0)
    histograms: Literal["none", "sums", "full"] = "sums"
    peak_window: Seconds = Seconds(60.0)
    gpu: GpuConfig = GpuConfig()
    models: dict[str, str] = {}
    alerts: dict[str, dict[str, bool | int | float | str]] = {}
    targets: list[Target] = []

    def timeout_of(self, target: Target) -> float:
        """Seconds that one round gives this target."""
        return self.scrape_timeout if target.timeout is None else target.timeout

    def histograms_of(self, target: Target) -> str:
        """How much of the target's histograms is passed on; all of them for a target in an experiment."""
        return target.histograms or ("full" if target.experiment else self.histograms)


# --- YAML to plain objects, with the line of every key and item ---


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core rules for plain scalars."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, ten times as fast where PyYAML was built with libyaml."""


_RULES = (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"null|~|", ["n", "~", ""]),
)
for _loader in (_Loader, _FastLoader):
    _loader.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _RULES:
        _rule = re.compile(rf"^(?:{_pattern})$")
        _loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _rule, list(_first))

Path_ = tuple[str | int, ...]


class _Source:
    """A parsed file: plain objects beside the line of each of their places."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path_, int] = {(): 1}

    def error(self, place: Path_, what: str) -> ConfigError:
        while place not in self.lines:
            place = place[:-1]
        return ConfigError(f"{self.name}:{self.lines[place]}: {what}")

    def plain(self, node: yaml.Node, place: Path_ = ()) -> Any:
        self.lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(self, node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*place, index)) for index, item in enumerate(node.value)]
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{self.name}:{key_line}: a key must be plain text; write `name: value`")
            if key in mapping:
                first = self.lines[(*place, key)]
                raise ConfigError(
                    f"{self.name}:{key_line}: {key!r} stands twice (first on line {first}); remove one"
                )
            self.lines[(*place, key)] = key_line
            mapping[key] = self.plain(value_node, (*place, key))
        return mapping


def _scalar(source: _Source, node: yaml.ScalarNode, place: Path_) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text = node.value
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text == "true"
    if kind == "int":
        if len(text) > 20:
            raise source.error(place, f"{text[:20]}… is too large a number; write a smaller one")
        return int(text)
    return float(text)


def _parse_yaml(text: str, name: str) -> yaml.Node | None:
    """The document's node. Raises ConfigError for unsupported features, and what PyYAML raises."""
    try:
        _refuse_features(text, name, _FastLoader)
        return yaml.compose(text, Loader=_FastLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        # The parser in Python says better what is wrong.
        _refuse_features(text, name, _Loader)
        return yaml.compose(text, Loader=_Loader)


def _refuse_features(text: str, name: str, loader: type[Any]) -> None:
    """Refuse anchors, aliases, tags and deep nesting before anything is built. Raises ConfigError."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{name}:{line}: YAML anchors and aliases are not supported; repeat the value")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ConfigError(f"{name}:{line}: the tag {tag!r} is not supported; write a plain value")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _compose(text: str, name: str) -> tuple[Any, _Source]:
    source = _Source(name)
    try:
        node = _parse_yaml(text, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = error.problem or error.context or "unreadable"
        if what.startswith("but "):  # the second half of a sentence
            what = f"{error.context}, {what}"
        raise ConfigError(f"{name}:{line}: not YAML: {what}; check indentation and quotes") from None
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise ConfigError(f"{name}:1: not YAML: {what}; save the file as UTF-8 text") from None
    except (ValueError, OverflowError):
        # PyYAML lets these out for escapes such as "\\UFFFFFFFF" and for overlong version numbers.
        raise ConfigError(f"{name}:1: not YAML: a number beyond its range; check escapes in quotes") from None
    return (None if node is None else source.plain(node)), source


# --- plain objects to Config ---

_PATH_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_WHAT_IS_WANTED = {
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a mapping of keys to values",
    "`object | null`": "a mapping of keys to values",
    "`str | null`": "text",
    "`int | str`": "a GPU's UUID or index",
    "`bool | int | float | str`": "text, a number or true or false",
}
_HINTS = {
    "listen": f"HOST:PORT in quotes, such as {DEFAULT_LISTEN}",
    "gpus": "a list of GPU UUIDs or indexes, {file: PATH} or {listener: true}",
    "launch_command": 'text such as "vllm serve …", or {from_pid: true}',
}


def _decode(kind: type, value: Any) -> Any:
    if kind is Seconds:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a duration; write it with a unit, such as 5s")
        return Seconds(units.parse_duration(value))
    if kind is Size:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{value!r} is not a size; write it as 2GiB or a whole number of bytes")
        return Size(units.parse_bytes(str(value)))
    raise TypeError(kind)


def _describe(value: Any, place: Path_ = ()) -> str:
    if isinstance(value, str) and {"basic_auth", "headers"} & set(place):
        return "text"  # which may be a secret in the wrong place
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}…"
    return "a list" if isinstance(value, list) else "a mapping"


def _dotted(place: Path_) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _keys_of(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


_KEYS_AT: dict[Path_, type[msgspec.Struct]] = {
    (): Config,
    ("gpu",): GpuConfig,
    ("targets", 0): Target,
    ("targets", 0, "basic_auth"): BasicAuth,
    ("targets", 0, "tls"): Tls,
    ("targets", 0, "gpus"): GpuSource,
    ("targets", 0, "launch_command"): PidSource,
}


def _refuse_unknown(source: _Source, value: Any, place: Path_ = ()) -> None:
    """Refuse keys that do not exist, naming the nearest ones; and those of features to come."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unknown(source, item, (*place, index))
        return
    kind = _KEYS_AT.get(tuple(0 if isinstance(part, int) else part for part in place))
    if not isinstance(value, dict) or kind is None:
        return
    known = _keys_of(kind)
    for key, item in value.items():
        where = (*place, key)
        dotted = re.sub(r"\[\d+\]", "[]", _dotted(where))
        if dotted in NOT_YET:
            raise source.error(
                where, f"{dotted!r} ({NOT_YET[dotted]}) does not work in this version yet; remove the key"
            )
        if key not in known:
            inside = f" in {_dotted(place)}" if place else ""
            raise source.error(where, f"unknown key {key!r}{inside}; known: {', '.join(sorted(known))}")
        _refuse_unknown(source, item, where)


def _translate(source: _Source, plain: Any, error: msgspec.ValidationError) -> ConfigError:
    # The last one: what stands before it may quote the file.
    text, separator, path = str(error).rpartition(" - at `$")
    if not separator:
        text, path = path, ""
    parts = [
        name or ("..." if index == "..." else int(index))
        for name, index in _PATH_PART.findall(path.rstrip("`"))
    ]
    # Of a mapping with free keys it is not said which value is meant: the first that cannot be one.
    allowed = {"Expected `str`": str, "Expected `object`": dict}.get(
        text.partition(",")[0], (str, int, float)
    )
    place, value = _wrong(plain, parts, allowed)
    what = f"{_dotted(place)}: " if place else ""
    if missing := re.search(r"missing required field `(\w+)`", text):
        return source.error(place, f"{what}the key {missing.group(1)!r} is missing; add it")
    if place and isinstance(place[-1], str) and place[-1] in _HINTS:
        return source.error(place, f"{what}found {_describe(value, place)}; write {_HINTS[place[-1]]}")
    if text.startswith("Invalid enum value"):
        kind = _KEYS_AT[tuple(0 if isinstance(part, int) else part for part in place[:-1])]
        field = next(f for f in msgspec.structs.fields(kind) if f.encode_name == place[-1])
        return source.error(place, f"unknown {place[-1]} {value!r}; known: {', '.join(_choices(field.type))}")
    if wanted := re.match(r"Expected (`[^`]+`)", text):
        cure = _WHAT_IS_WANTED.get(wanted.group(1), wanted.group(1).strip("`"))
        return source.error(place, f"{what}found {_describe(value, place)}; write {cure}")
    return source.error(place, f"{what}{text}")


def _wrong(value: Any, parts: list[str | int], allowed: Any) -> tuple[Path_, Any]:
    """Place and value at the end of the parts; `...` is the first key that leads to nothing allowed."""
    if not parts:
        return (), value
    for key in value if parts[0] == "..." else parts[:1]:
        place, found = _wrong(value[key], parts[1:], allowed)
        if "..." not in parts or not isinstance(found, allowed):
            break
    return (key, *place), found


def _choices(annotation: Any) -> Iterator[str]:
    for choice in getattr(annotation, "__args__", ()):
        if isinstance(choice, str):
            if choice:
                yield choice
        else:
            yield from _choices(choice)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")


def _check_target(source: _Source, target: Target, index: int) -> None:
    place: Path_ = ("targets", index)

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
    if not is_url:
        raise refuse("url", f"{target.url!r} is not an http(s) URL; write http://HOST:PORT")
    if parts.query or parts.fragment:
        raise refuse(
            "url", "the url holds a query or a fragment; write http://HOST:PORT and use metrics_path"
        )
    if parts.path.rstrip("/").endswith("/metrics"):
        raise refuse(
            "url", f"the url {target.url!r} names a page; write http://HOST:PORT and use metrics_path"
        )
    if target.metrics_path is not None and re.search(r"[?#\s]", target.metrics_path):
        raise refuse("metrics_path", "the metrics_path holds a query, a fragment or a blank; write /metrics")
    if target.metrics_path is not None and not target.metrics_path.startswith("/"):
        raise refuse("metrics_path", f"{target.metrics_path!r} does not start with a slash; write /metrics")
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
    for name, value in target.headers.items():
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


def parse(text: str, name: str = "brimline.yaml") -> Config:
    """Config from the text of a file; `name` stands in the error messages. Raises ConfigError."""
    plain, source = _compose(text, name)
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise source.error((), f"the file holds {_describe(plain)}; write keys such as `targets:`")
    _refuse_unknown(source, plain)
    try:
        config = msgspec.convert(plain, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise _translate(source, plain, error) from None
    try:
        parse_listen(config.listen)
    except ValueError as error:
        raise source.error(("listen",), str(error)) from None
    durations: tuple[tuple[Path_, float, float], ...] = (
        (("scrape_timeout",), config.scrape_timeout, 0.001),
        (("peak_window",), config.peak_window, 1.0),
        (("gpu", "sample_interval"), config.gpu.sample_interval, 0.05),
    )
    for place, seconds, least in durations:
        if seconds < least:
            raise source.error(
                place,
                f"{_dotted(place)} of {seconds:g}s is too short; write at least {least:g}s",
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
                ("alerts", alert), f"unknown alert {alert!r}; known: {', '.join(thresholds.ALERTS)}"
            )
    seen: dict[str, int] = {}
    for index, target in enumerate(config.targets):
        _check_target(source, target, index)
        if target.name in seen:
            first = source.lines[("targets", seen[target.name])]
            raise source.error(
                ("targets", index, "name"),
                f"the target name {target.name!r} stands twice (first on line {first}); rename one",
            )
        seen[target.name] = index
    return config


def load(path: Path) -> Config:
    """Config from a file. Raises ConfigError, also where the file cannot be read."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except NotARegularFile:
        raise ConfigError(f"{path}: not a regular file; name a YAML file") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {units.format_bytes(MAX_FILE_BYTES)}; split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return parse(text, str(path))


def masked(config: Config) -> str:
    """The configuration as YAML, with the values of request headers replaced by `<secret>`."""

    def encode(value: object) -> object:
        if isinstance(value, Seconds):
            return f"{float(value):.12g}s"
        if isinstance(value, Size):
            return int(value)
        raise NotImplementedError  # pragma: no cover - msgspec hands over custom types only

    plain = msgspec.to_builtins(config, enc_hook=encode)
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
