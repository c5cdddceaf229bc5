"""YAML of a few plain lines: no aliases, no merge keys, no key twice."""

from __future__ import annotations

from typing import Any

import yaml


class NotStrictYamlError(ValueError):
    """The text is no such YAML. line: where; None where that is not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class _Strict(yaml.SafeLoader):
    """A loader that refuses them."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "an alias stands here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                raise yaml.constructor.ConstructorError(None, None, "a key is no word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def strict_yaml(text: str) -> Any:
    """What the text holds. Raises NotStrictYamlError."""
    try:
        # S506: the loader is a stricter SafeLoader.
        return yaml.load(text, Loader=_Strict)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        raise NotStrictYamlError(error.problem or "not YAML", line) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise NotStrictYamlError("not YAML") from None
