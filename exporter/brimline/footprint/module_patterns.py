"""Patterns of module names, matched in time that grows with the name and not with the pattern.

The patterns come with a checkpoint, from anywhere, and Python's own `re` may take longer for one than anybody
waits. What quantizers write is a small part of its syntax: characters, classes, groups, alternatives,
repetitions, anchors, and looking ahead at the front, as in `^(?!.*experts).*$` (compressed-tensors 0.17,
GPTQModel, llm-compressor and Quark write no other). It becomes a nondeterministic automaton, whose sets of
states are followed character by character and kept. All else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from brimline.errors import FootprintError

# Of one pattern as it is written; of its repetitions; of groups within groups; of looks ahead at its front.
_MAX_LENGTH, _MAX_TIMES, _MAX_DEPTH, _MAX_LOOKS = 512, 64, 16, 4
# Of all patterns of a checkpoint together: states of their automata, and steps that are taken in them.
_MAX_STATES, _MAX_STEPS = 200_000, 4_000_000
# Sets of states that are kept at a time.
_MAX_KEPT = 20_000

_SPECIAL = frozenset("()[]{}*+?|^$\\.")


@dataclass(frozen=True, slots=True)
class Chars:
    """A set of characters: those listed or of one of the kinds; all others where it is negated."""

    listed: frozenset[str] = frozenset()
    kinds: tuple[Callable[[str], bool], ...] = ()
    negated: bool = False

    def __contains__(self, char: str) -> bool:
        return (char in self.listed or any(kind(char) for kind in self.kinds)) is not self.negated


@dataclass(frozen=True, slots=True)
class Sequel:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of them."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same several times; without end where most is None."""

    part: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning of a name, or its end."""

    at_end: bool


Node = Chars | Sequel | Choice | Repeat | Anchor


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that is matched from the front. looks: what begins there too, or must not (False)."""

    node: Node
    looks: tuple[tuple[bool, Node], ...] = ()


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


_ANY = Chars(frozenset("\n"), negated=True)
_KINDS: dict[str, Chars] = {
    "d": Chars(kinds=(str.isdecimal,)),
    "D": Chars(kinds=(str.isdecimal,), negated=True),
    "w": Chars(kinds=(_is_word,)),
    "W": Chars(kinds=(_is_word,), negated=True),
    "s": Chars(kinds=(str.isspace,)),
    "S": Chars(kinds=(str.isspace,), negated=True),
}


def regular_expression(text: str) -> Pattern:
    """A regular expression in the syntax that is read. Raises FootprintError."""
    if len(text) > _MAX_LENGTH:
        raise _refused(text)
    return _Reader(text).pattern()


def glob(text: str) -> Pattern:
    """A pattern of file names, which means the module and all within it. Raises FootprintError."""
    if len(text) > _MAX_LENGTH:
        raise _refused(text)
    parts: list[Node] = []
    index = 0
    while index < len(text):
        char = text[index]
        index += 1
        if char == "*":
            parts.append(Repeat(_ANY, 0, None))
        elif char == "?":
            parts.append(_ANY)
        elif char == "[" and (end := text.find("]", index + 1 + text.startswith("!", index))) > 0:
            negated = text[index] == "!"
            parts.append(Chars(_listed(text[index + negated : end], text), negated=negated))
            index = end + 1
        else:
            parts.append(Chars(frozenset(char)))
    within = Sequel((Chars(frozenset(".")), Repeat(_ANY, 0, None)))
    return Pattern(Sequel((*parts, Repeat(within, 0, 1), Anchor(at_end=True))))


def _refused(text: str) -> FootprintError:
    return FootprintError(f"quantization_config: pattern {text[:80]!r} is not read here")


def _listed(text: str, whole: str) -> frozenset[str]:
    """Characters of a class that is written without escapes, as in a-z0-9_."""
    found: set[str] = set()
    index = 0
    while index < len(text):
        first = last = text[index]
        if text[index + 1 : index + 2] == "-" and index + 2 < len(text):
            last = text[index + 2]
            index += 2
        index += 1
        if not 0 <= ord(last) - ord(first) <= 256:
            raise _refused(whole)
        found.update(map(chr, range(ord(first), ord(last) + 1)))
    return frozenset(found)


class _Reader:
    """Reads one regular expression, once."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def _next(self, wanted: str) -> bool:
        """Step over what is wanted; False where something else stands there."""
        if not self.text.startswith(wanted, self.at):
            return False
        self.at += len(wanted)
        return True

    def pattern(self) -> Pattern:
        start = self._next("^")
        looks: list[tuple[bool, Node]] = []
        while (wants := self._next("(?=")) or self._next("(?!"):
            looks.append((wants, self._choice(1)))
            if not self._next(")") or len(looks) > _MAX_LOOKS:
                raise _refused(self.text)
        node = self._choice(0)
        if self.at < len(self.text) or (looks and isinstance(node, Choice)):
            raise _refused(self.text)  # a look ahead that is of one alternative only
        if start and isinstance(node, Choice):
            first, *others = node.options
            return Pattern(Choice((Sequel((Anchor(at_end=False), first)), *others)))
        return Pattern(node, tuple(looks))

    def _choice(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise _refused(self.text)
        options = [self._sequel(depth)]
        while self._next("|"):
            options.append(self._sequel(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequel(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self._repeated(self._atom(depth)))
        return Sequel(tuple(parts))

    def _atom(self, depth: int) -> Node:
        char = self.text[self.at]
        self.at += 1
        if char == "(":
            if not self._next("?:") and self._next("?"):
                raise _refused(self.text)
            inner = self._choice(depth + 1)
            if not self._next(")"):
                raise _refused(self.text)
            return inner
        if char == "[":
            return self._class()
        if char == ".":
            return _ANY
        if char in "^$":
            return Anchor(at_end=char == "$")
        if char == "\\":
            return self._escaped()
        if char in _SPECIAL:
            raise _refused(self.text)
        return Chars(frozenset(char))

    def _escaped(self) -> Chars:
        char = self.text[self.at : self.at + 1]
        self.at += 1
        if char in _KINDS and char:
            return _KINDS[char]
        if not char or char.isalnum():
            raise _refused(self.text)  # a reference, a boundary, a code
        return Chars(frozenset(char))

    def _class(self) -> Chars:
        negated = self._next("^")
        listed: set[str] = set()
        kinds: list[Callable[[str], bool]] = []
        is_first = True
        while is_first or not self._next("]"):
            is_first = False
            first = self._class_member()
            if first.kinds:
                if first.negated:
                    raise _refused(self.text)
                kinds += first.kinds
            elif (
                self.text.startswith("-", self.at)
                and self.text[self.at + 1 : self.at + 2] not in ("", "]")
            ):  # fmt: skip
                self.at += 1
                last = self._class_member()
                if last.kinds:
                    raise _refused(self.text)
                listed |= _listed(f"{min(first.listed)}-{min(last.listed)}", self.text)
            else:
                listed |= first.listed
        return Chars(frozenset(listed), tuple(kinds), negated)

    def _class_member(self) -> Chars:
        char = self.text[self.at : self.at + 1]
        self.at += 1
        if char == "\\":
            return self._escaped()
        if not char or char == "[":
            raise _refused(self.text)
        return Chars(frozenset(char))

    def _repeated(self, atom: Node) -> Node:
        char = self.text[self.at : self.at + 1]
        bounds: tuple[int, int | None] | None = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char)
        if bounds is not None:
            self.at += 1
        elif char == "{":
            bounds = self._times()
        else:
            return atom
        if isinstance(atom, Anchor) or self.text[self.at : self.at + 1] in ("*", "+", "{"):
            raise _refused(self.text)
        self._next("?")  # as few as possible: for whether it matches, the same
        if self.text[self.at : self.at + 1] in ("*", "+", "?", "{"):
            raise _refused(self.text)
        return Repeat(atom, *bounds)

    def _times(self) -> tuple[int, int | None]:
        end = self.text.find("}", self.at)
        least, comma, most = self.text[self.at + 1 : max(end, 0)].partition(",")
        self.at = end + 1
        numbers = [word for word in (least, most) if word]
        if end < 0 or not least or not all(n.isascii() and n.isdigit() and len(n) < 4 for n in numbers):
            raise _refused(self.text)
        low = int(least)
        high = low if not comma else int(most) if most else None
        if max(low, high or 0) > _MAX_TIMES or (high is not None and high < low):
            raise _refused(self.text)
        return low, high


@dataclass(slots=True, eq=False)
class _States:
    """A set of states of the automaton, and what follows it. ends: whether a name may end here to match."""

    members: tuple[int, ...]
    accepts: bool
    ends: bool
    moves: dict[str, _States]


@dataclass(slots=True)
class Effort:
    """What the patterns of a checkpoint have cost so far. Raises FootprintError beyond what is spent on them.

    states: of their automata. steps: characters of names, and states visited for what was not met before.
    """

    states: int = 0
    steps: int = 0

    def grow(self) -> None:
        self.states += 1
        if self.states > _MAX_STATES:
            raise FootprintError("quantization_config: patterns that name modules are larger than is read")

    def step(self, count: int) -> None:
        self.steps += count
        if self.steps > _MAX_STEPS:
            raise FootprintError(
                "quantization_config: patterns that name modules take longer to match than is waited"
            )


class Matcher:
    """Whether a name begins with one of several patterns. Raises FootprintError as its effort does."""

    def __init__(self, nodes: Iterable[Node], effort: Effort) -> None:
        self._effort = effort
        self._edges: list[list[tuple[Chars, int]]] = []
        self._free: list[list[int]] = []
        self._anchored: list[list[tuple[bool, int]]] = []
        self._accepting: set[int] = set()
        starts = []
        for node in nodes:
            start = self._state()
            starts.append(start)
            self._accepting.add(self._built(node, start))
        self._kept: dict[tuple[int, ...], _States] = {}
        self._start = self._closed(starts, at_start=True)

    def _state(self) -> int:
        self._effort.grow()
        self._edges.append([])
        self._free.append([])
        self._anchored.append([])
        return len(self._edges) - 1

    def _built(self, node: Node, start: int) -> int:
        """The state behind a part that begins in a state."""
        match node:
            case Chars():
                end = self._state()
                self._edges[start].append((node, end))
            case Anchor():
                end = self._state()
                self._anchored[start].append((node.at_end, end))
            case Sequel():
                end = start
                for part in node.parts:
                    end = self._built(part, end)
            case Choice():
                end = self._state()
                for option in node.options:
                    first = self._state()
                    self._free[start].append(first)
                    self._free[self._built(option, first)].append(end)
            case Repeat():
                end = self._repeated(node, start)
        return end

    def _repeated(self, node: Repeat, start: int) -> int:
        for _ in range(node.least):
            start = self._built(node.part, start)
        end = self._state()
        if node.most is None:
            again = self._state()
            self._free[start].append(again)
            self._free[self._built(node.part, again)].append(again)
            self._free[again].append(end)
            return end
        for _ in range(node.most - node.least):
            self._free[start].append(end)
            start = self._built(node.part, start)
        self._free[start].append(end)
        return end

    def _closed(self, states: Iterable[int], *, at_start: bool = False) -> _States:
        """The states with all that are reached from them without a character."""
        reached = self._reached(states, at_start=at_start, at_end=False)
        members = tuple(sorted(state for state in reached if self._edges[state]))
        accepts = not self._accepting.isdisjoint(reached)
        last = reached if accepts else self._reached(reached, at_start=at_start, at_end=True)
        ends = not self._accepting.isdisjoint(last)
        key = (*members, -1 - accepts, -3 - ends)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            found = self._kept[key] = _States(members, accepts, ends, {})
        return found

    def _reached(self, states: Iterable[int], *, at_start: bool, at_end: bool) -> set[int]:
        reached = set(states)
        waiting = list(reached)
        while waiting:
            state = waiting.pop()
            further = [
                *self._free[state],
                *(to for of_end, to in self._anchored[state] if (at_end if of_end else at_start)),
            ]
            for to in further:
                if to not in reached:
                    reached.add(to)
                    waiting.append(to)
        self._effort.step(len(reached))
        return reached

    def _move(self, states: _States, char: str) -> _States:
        self._effort.step(len(states.members))
        following = self._closed(
            [to for state in states.members for chars, to in self._edges[state] if char in chars]
        )
        states.moves[char] = following
        return following

    def matches(self, name: str) -> bool:
        """True where the name, or the beginning of it, matches."""
        self._effort.step(len(name))
        states = self._start
        if states.accepts:
            return True
        for char in name:
            if not states.members:
                return False
            states = states.moves.get(char) or self._move(states, char)
            if states.accepts:
                return True
        return states.ends


class Patterns:
    """Several patterns as one question. Raises FootprintError as their effort does."""

    def __init__(self, patterns: Sequence[Pattern], effort: Effort) -> None:
        self._plain = Matcher([pattern.node for pattern in patterns if not pattern.looks], effort)
        self._looking = [
            (
                Matcher([pattern.node], effort),
                [(wanted, Matcher([node], effort)) for wanted, node in pattern.looks],
            )
            for pattern in patterns
            if pattern.looks
        ]

    def matches(self, name: str) -> bool:
        """Whether a name matches one of the patterns, from the front."""
        return self._plain.matches(name) or any(
            matcher.matches(name) and all(look.matches(name) is wanted for wanted, look in looks)
            for matcher, looks in self._looking
        )
