"""What an engine's adapter is: its data and its one pure function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import msgspec

from brimline.engines.families import Quantity
from brimline.exposition_text import Page
from brimline.readings import EngineReading


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path beside the metrics page that an adapter wants as JSON.

    live: asked in every round; otherwise once for each start of the server.
    fields: the only keys that are kept, at any depth, because the document also holds what users wrote
    (llama.cpp's /slots shows prompts); None keeps all.
    when: of a live one, whether this round's page makes it worth asking; None asks it beside the page.
    """

    path: str
    live: bool = False
    when: Callable[[Page], bool] | None = None
    fields: frozenset[str] | None = None

    def keep(self, document: Any) -> Any:
        """The document without the keys that are not wanted."""
        if self.fields is None:
            return document
        if isinstance(document, list):
            return [self.keep(item) for item in document]
        if isinstance(document, dict):
            return {key: self.keep(value) for key, value in document.items() if key in self.fields}
        return document


class Evidence(msgspec.Struct, frozen=True):
    """All that was read from one server in one round.

    page: what stands on its metrics page; empty where the engine answers JSON in its place.
    documents: decoded JSON by path, of those endpoints that answered.
    headers: of the metrics page, lower case.
    launch: the settings that the server was started with, as far as they are declared; else empty.
    state: the decoded JSON that stands in place of a metrics page; None for all engines that have one.
    """

    page: Page
    documents: Mapping[str, Any] = msgspec.field(default_factory=dict)
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    launch: Mapping[str, str] = msgspec.field(default_factory=dict)
    state: Any = None


def _nothing_implied(_words: Sequence[str]) -> Mapping[str, str]:
    return {}


def _no_program(_words: Sequence[str]) -> bool:
    return False


def _any_page(_names: Set[str], _body: bytes) -> bool:
    return True


def _no_bytes(_body: bytes) -> bool:
    return False


def _unknown_size(_settings: Mapping[str, str]) -> int | None:
    return None


def _states_little(_settings: Mapping[str, str]) -> bool:
    return False


@functools.lru_cache(64)  # an adapter may be fitted to a page
def _without_buckets(names: frozenset[bytes]) -> frozenset[bytes]:
    return frozenset(name for name in names if not name.endswith(b"_bucket"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One inference engine.

    versions: those whose names and endpoints were read. tested_live: a version that the tests run; empty
    where none was ever asked.
    prefixes, suffixes: how names of its own families begin or end. names: further names of its own, whole.
    table: what its page gives, by field of RankReading; fields with other names are only on the way to one.
    elsewhere: fields that the table does not give, or not in every case, and what they come from, in words.
    besides: what `requires` and `recognises` ask of a page beside a name of its own, in words.
    requires: names without which a page is not this engine's, where its names are not telling by themselves.
    recognises: whether a page is this engine's, by all its sample names and its bytes, where single names do
    not tell.
    wraps: engines whose families stand on this engine's pages too, and then belong to it.
    metrics_paths: where its page is, in the order to try; never a path whose reading disturbs the server.
    is_state: whether decoded JSON is what this engine answers there in place of a page of metrics; None for
    an engine that has one.
    drains: whether an answer at another engine's path is a queue of this one's, which the reading emptied.
    metrics_switch: what turns its metrics on, as words behind "start it"; empty where they always are.
    owned_by: what its /v1/models says in `owned_by`.
    wanted: sample names that `read` looks at.
    fit: the adapter for this very page, where an operator may choose how its names begin; None elsewhere.
    launch_program: whether a command line starts this engine.
    launch_implies: settings that a command line has beside its flags, by environment variables or the image.
    launch_images: parts of the names of container images whose arguments are this engine's.
    launch_flags: short or other spellings of flags, to the engine's own long name with underscores.
    config_flags: flags that name a file of further settings. config_wins: it goes before the command line.
    flags: long names of the flags that decide its memory or speed; no others are ever shown.
    other_flags: flags that decide none of it, yet look like one that does misspelt.
    launch_switches: flags that take no value.
    world_size: how many GPUs of one machine the server uses by its settings; None where they do not say,
    0 where it runs on the CPU.
    predictor: a key of brimline.footprint.predict.PREDICTORS; None where its memory is not predicted.
    states_launch: whether the live settings hold every launch setting, so that none need be declared.
    """

    name: str
    title: str
    versions: str
    wanted: frozenset[bytes]
    read: Callable[[Evidence], EngineReading]
    tested_live: str = ""
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    table: Mapping[str, Quantity] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    besides: str = ""
    requires: frozenset[str] = frozenset()
    recognises: Callable[[Set[str], bytes], bool] = _any_page
    wraps: frozenset[str] = frozenset()
    metrics_paths: tuple[str, ...] = ("/metrics",)
    is_state: Callable[[Any], bool] | None = None
    drains: Callable[[bytes], bool] = _no_bytes
    metrics_switch: str = ""
    owned_by: str | None = None
    usual_ports: tuple[int, ...] = ()
    fit: Callable[[bytes], Adapter] | None = None
    endpoints: tuple[Endpoint, ...] = ()
    launch_program: Callable[[Sequence[str]], bool] = _no_program
    launch_implies: Callable[[Sequence[str]], Mapping[str, str]] = _nothing_implied
    launch_images: tuple[str, ...] = ()
    launch_flags: Mapping[str, str] = field(default_factory=dict)
    config_flags: frozenset[str] = frozenset()
    config_wins: bool = False
    flags: frozenset[str] = frozenset()
    other_flags: frozenset[str] = frozenset()
    launch_switches: frozenset[str] = frozenset()
    launch_model_flag: str = "model"
    world_size: Callable[[Mapping[str, str]], int | None] = _unknown_size
    predictor: str | None = None
    states_launch: Callable[[Mapping[str, str]], bool] = _states_little

    def owns(self, name: str) -> bool:
        """True for the name of a sample that is one of this engine's own."""
        return name.startswith(self.prefixes) or name.endswith(self.suffixes) or name in self.names

    @property
    def wanted_without_buckets(self) -> frozenset[bytes]:
        """Sample names that `read` looks at where nobody asks for whole histograms."""
        return _without_buckets(self.wanted)

    @property
    def shown_flags(self) -> frozenset[str]:
        """Settings that may leave the process: names that are known to hold no secret."""
        return self.flags | {self.launch_model_flag}
