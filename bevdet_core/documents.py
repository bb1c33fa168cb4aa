"""JSON and YAML that others have written, read with limits: a hostile file ends in an error and in nothing else."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

SMALL = 2**19  # bytes of a document that people write by hand
LARGE = 2**33  # bytes of a table; that of train2017 has 2**29
MAX_DEPTH = 32  # lists and mappings within each other
MAX_NODES = 100_000  # values of a YAML document with all its aliases written out


class DocumentError(ValueError):
    """Text that is no JSON or YAML, or larger, deeper or less clear than any that is meant well."""


def read_text(path: Path, limit: int = SMALL) -> str:
    """The text of a UTF-8 file of at most so many bytes.

    Raises:
        DocumentError: it is larger, or no UTF-8; the message does not name the file.
        OSError: it cannot be read.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"no UTF-8 text: {error}") from None


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most so many bytes; see `read_text`."""
    size = path.stat().st_size
    if size > limit:
        raise DocumentError(f"its {size:,} bytes are more than the {limit:,} that such a file may have")
    return path.read_bytes()


def parse_json(text: str | bytes, max_depth: int | None = MAX_DEPTH) -> Any:
    """The content of a JSON document.

    Args:
        text: the document.
        max_depth: see `MAX_DEPTH`; None for tables that are too large to be walked through, whose depth then has the
            limit of the parser.

    Raises:
        DocumentError: no JSON, a key that stands twice in an object, or deeper than allowed.
    """
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except ValueError as error:
        raise DocumentError(str(error)) from None
    if max_depth is not None:
        check_depth(content, max_depth)
    return content


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises `DocumentError` where a key stands twice, of which readers would take either."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the key {shown(twice)} stands twice in one object")
    return content


def parse_yaml(text: str) -> Any:
    """The content of a YAML document of plain values.

    Raises:
        DocumentError: no YAML, tags of other values, a key that stands twice, deeper than allowed, or aliases that
            multiply to more than `MAX_NODES` values.
    """
    try:
        content = yaml.load(text, _Loader)
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise DocumentError(f"{line}{error.problem or error.context}") from error
    except Exception as error:  # values such as the 40th of May
        raise DocumentError(str(error) or repr(error)) from error
    check_depth(content, MAX_DEPTH)
    return content


def check_depth(content: Any, max_depth: int) -> None:
    """Raise `DocumentError` where lists and mappings lie deeper within each other."""
    level, depth = [content], 0
    while level := [
        child
        for item in level
        if isinstance(item, (dict, list, tuple))
        for child in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
        if depth > max_depth:
            raise DocumentError(f"nested more than {max_depth} levels deep")


def shown(value: object) -> str:
    """A value for a message, shortened."""
    return _SHORT.repr(value)


def listed(items: Sequence[object]) -> str:
    """Lines that follow a message: the first few of many."""
    more = f"\n  ... and {len(items) - 8} more" if len(items) > 8 else ""
    return "".join(f"\n  {item}" for item in items[:8]) + more


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a string that files and file names can hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write
        return False
    return True


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of 64 bits, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number that a float can hold, infinite and undefined ones included."""
    return isinstance(value, float) or is_integer(value)


def first_not_finite(content: Any, name: str = "") -> str | None:
    """The dotted name of the first number in a tree that is infinite or undefined."""
    if isinstance(content, float) and not math.isfinite(content):
        return name
    items: Any = content.items() if isinstance(content, dict) else ()
    if isinstance(content, (list, tuple)):
        items = enumerate(content)
    found = (first_not_finite(item, f"{name}.{key}" if name else str(key)) for key, item in items)
    return next((place for place in found if place is not None), None)


class _Loader(yaml.SafeLoader):
    """Plain values; each key once, and no more of them than a file that is meant well can have."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for when every alias below it is written out."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise DocumentError(f"line {node.start_mark.line + 1}: a value that contains itself")
        return counts[id(node)]
    counts[id(node)] = 0  # under way
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DocumentError(f"line {node.start_mark.line + 1}: the key {shown(twice)} stands twice in one mapping")
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count(child, counts) for child in children)
    if total > MAX_NODES:
        raise DocumentError(f"its aliases multiply to more than {MAX_NODES:,} values")
    counts[id(node)] = total
    return total


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 3
