"""YAML files that people write, read strictly: plain objects with the line of every place, then a struct.

Every mistake is a ConfigError that reads `FILE:LINE: what; what to do`. YAML is read with the plain rules of
YAML 1.2 (`yes` and `12:30:45` stay text), without anchors, merge keys, tags or duplicate keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from brimline import units
from brimline.errors import ConfigError
from brimline.files import NotARegularFile, open_regular
from brimline.spelling import known_names

MAX_FILE_BYTES = 256 << 10
MAX_DEPTH = 20

Struct = TypeVar("Struct", bound=msgspec.Struct)


class Seconds(float):
    """A duration; written `5s` in the file."""


class Size(int):
    """Bytes; written `2GiB` or a plain number in the file."""


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

Place = tuple[str | int, ...]


class Source:
    """A parsed file: plain objects beside the line of each of their places."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Place, int] = {(): 1}

    def has(self, *place: str | int) -> bool:
        """True where something stands at that place, be it nothing but its key."""
        return place in self.lines

    def error(self, place: Place, what: str) -> ConfigError:
        while place not in self.lines:
            place = place[:-1]
        return ConfigError(f"{self.name}:{self.lines[place]}: {what}")

    def plain(self, node: yaml.Node, place: Place = ()) -> Any:
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


def _scalar(source: Source, node: yaml.ScalarNode, place: Place) -> Any:
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
            raise source.error(place, f"a number of {len(text)} digits is too large; write a smaller one")
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
        if getattr(event, "tag", None) is not None:
            # It is not quoted: a password may begin with an exclamation mark.
            raise ConfigError(f"{name}:{line}: tags such as !include are not supported; write a plain value")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def compose(text: str, name: str) -> tuple[Any, Source]:
    source = Source(name)
    try:
        node = _parse_yaml(text, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = error.problem or error.context or "unreadable"
        if "tag handle" in what:
            what = "found an undefined tag handle"  # as for tags
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


# --- plain objects to a struct ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a file may hold, for its error messages.

    keys_at: the struct at each place (0 stands for any item of a list). hints: what to write, by key.
    not_yet: keys of features to come, with what they are. secret_keys: below these no text is quoted, nor
    is it at a place for keys: it may be of another file, or what stands here in short, with its secrets.
    """

    keys_at: Mapping[Place, type[msgspec.Struct]]
    hints: Mapping[str, str] = field(default_factory=dict)
    not_yet: Mapping[str, str] = field(default_factory=dict)
    secret_keys: frozenset[str] = frozenset()


_PATH_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_WHAT_IS_WANTED = {
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`bool | null`": "true or false",
    "`array`": "a list",
    "`object`": "a mapping of keys to values",
    "`object | null`": "a mapping of keys to values",
    "`str | null`": "text",
    "`int | str`": "a GPU's UUID or index",
    "`bool | int | float | str`": "text, a number or true or false",
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


def _general(place: Place) -> Place:
    """The place with 0 for any item of a list."""
    return tuple(0 if isinstance(part, int) else part for part in place)


def _describe(value: Any, place: Place = (), schema: Schema | None = None) -> str:
    belongs_elsewhere = schema is not None and _general(place) in schema.keys_at
    if schema is not None and (belongs_elsewhere or schema.secret_keys & set(place)):
        # It may be a secret in the wrong place.
        if isinstance(value, str):
            return "text"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return "a number"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}…"
    return "a list" if isinstance(value, list) else "a mapping"


def dotted(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _keys_of(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def read_struct(text: str, name: str, kind: type[Struct], schema: Schema) -> tuple[Struct, Source]:
    """The struct that a file's text describes, and its places. Raises ConfigError."""
    plain, source = compose(text, name)
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        first = next(iter(_keys_of(kind)))
        key = next((key for key in ("targets", "variants") if key in _keys_of(kind)), first)
        raise source.error((), f"the file holds {_describe(plain, (), schema)}; write keys such as `{key}:`")
    _refuse_unknown(source, plain, schema)
    try:
        return msgspec.convert(plain, kind, dec_hook=_decode), source
    except msgspec.ValidationError as error:
        raise _translate(source, plain, error, schema) from None


def _refuse_unknown(source: Source, value: Any, schema: Schema, place: Place = ()) -> None:
    """Refuse keys that do not exist, naming the nearest ones; and those of features to come."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unknown(source, item, schema, (*place, index))
        return
    kind = schema.keys_at.get(_general(place))
    if not isinstance(value, dict) or kind is None:
        return
    known = _keys_of(kind)
    for key, item in value.items():
        where = (*place, key)
        path = re.sub(r"\[\d+\]", "[]", dotted(where))
        if path in schema.not_yet:
            raise source.error(
                where, f"{path!r} ({schema.not_yet[path]}) does not work in this version yet; remove the key"
            )
        if key not in known:
            inside = f" in {dotted(place)}" if place else ""
            raise source.error(where, f"unknown key {key!r}{inside}; {known_names(key, sorted(known))}")
        _refuse_unknown(source, item, schema, where)


def _translate(source: Source, plain: Any, error: msgspec.ValidationError, schema: Schema) -> ConfigError:
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
    what = f"{dotted(place)}: " if place else ""
    if missing := re.search(r"missing required field `(\w+)`", text):
        return source.error(place, f"{what}the key {missing.group(1)!r} is missing; add it")
    if place and isinstance(place[-1], str) and place[-1] in schema.hints:
        return source.error(
            place, f"{what}found {_describe(value, place, schema)}; write {schema.hints[place[-1]]}"
        )
    if text.startswith("Invalid enum value"):
        kind = schema.keys_at[_general(place[:-1])]
        field = next(f for f in msgspec.structs.fields(kind) if f.encode_name == place[-1])
        return source.error(
            place, f"unknown {place[-1]} {value!r}; {known_names(value, _choices(field.type))}"
        )
    if wanted := re.match(r"Expected (`[^`]+`)", text):
        cure = _WHAT_IS_WANTED.get(wanted.group(1), wanted.group(1).strip("`"))
        return source.error(place, f"{what}found {_describe(value, place, schema)}; write {cure}")
    return source.error(place, f"{what}{text}")


def _wrong(value: Any, parts: list[str | int], allowed: Any) -> tuple[Place, Any]:
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


def read_text(path: Path) -> str:
    """The text of a file that people write. Raises ConfigError where it cannot be read."""
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
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
