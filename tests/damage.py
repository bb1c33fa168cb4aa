"""Damage for files: what a hostile or broken writer could have put into them. The same seed does the same damage."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

QUICK = [pytest.param(range(60), id="quick")]
LONG = [pytest.param(range(60 + 500 * i, 560 + 500 * i), marks=pytest.mark.soak, id=f"soak{i}") for i in range(4)]
every_seed = pytest.mark.parametrize("seeds", QUICK + LONG)

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", "x", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "x" * 5000),
    *("nan", "1e9", "{}", [], {}, [[]], [None], [1, [2]], {"a": {}}, [1e308] * 3, ["x"] * 4, [0] * 4),
]
SNIPPETS = [
    b"[" * 3000,
    b"{" * 300,
    b"NaN",
    b"-Infinity",
    b"\xff\xfe",
    b"\0",
    b"1" * 6000,
    b'"a":1,"a":2',
    b"]}",
    b"\\ud800",
]
YAML_SNIPPETS = [
    b"!!bool x",
    b"!!timestamp x",
    b"&a [*a]",
    b"<<: *x",
    b"!!python/object:os.system x",
    b"? [a]: b",
    b"2024-13-45",
]


def damaged_bytes(content: bytes, rng: np.random.Generator, snippets: list[bytes] = SNIPPETS) -> bytes:
    """Some bytes cut off, changed, repeated, or put in between."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, max(len(data), 1)))
        length = int(rng.integers(1, 40))
        kind = rng.integers(5)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place : place + length] = bytes(rng.integers(0, 256, length, dtype=np.uint8))
        elif kind == 2:
            data[place:place] = data[place : place + length] * int(rng.integers(1, 4))
        elif kind == 3:
            data[place:place] = snippets[rng.integers(len(snippets))]
        else:
            del data[place : place + length]
    return bytes(data)


def damaged_tree(content: Any, rng: np.random.Generator) -> Any:
    """Nested dicts and lists in which some values are missing, doubled, swapped or hostile."""
    tree = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(tree))
        holder, key = places[rng.integers(len(places))]
        kind = rng.integers(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 2:
            other, name = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])
        if not tree:
            break
    return tree


def damaged_json(content: Any, rng: np.random.Generator) -> bytes:
    """A JSON document, damaged as a tree or as bytes."""
    if rng.random() < 0.75:
        return json.dumps(damaged_tree(content, rng)).encode()
    return damaged_bytes(json.dumps(content).encode(), rng)


def damaged_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with damage to the names, kinds and shapes that it tells, or anywhere."""
    if rng.random() < 0.5:
        return damaged_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    text = damaged_json(json.loads(content[8 : 8 + length]), rng)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def damaged_tensors(tensors: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Tensors of which some are missing, renamed, swapped, or of another shape, kind or content."""
    out = dict(tensors)
    for _ in range(rng.integers(1, 4)):
        name, other = map(str, rng.choice(sorted(out), 2))
        tensor = out[name]
        kind = rng.integers(8)
        if kind == 0:
            del out[name]
        elif kind == 1:
            out[f"{name}{rng.choice(['x', '/0', '.0', '0'])}"] = out.pop(name)
        elif kind == 2:
            out[name] = out[other]
        elif kind == 3:
            out[name] = tensor[None].repeat(2, *[1] * tensor.dim())
        elif kind == 4:
            out[name] = tensor.flatten()[: int(rng.integers(0, 3))]
        elif kind == 5:
            out[name] = tensor.to(torch.int64)
        elif kind == 6:
            out[name] = tensor.to(torch.float16)
        else:
            out[name] = torch.full_like(tensor, float("nan") if tensor.is_floating_point() else 97)
        if not out:
            break
    return out


def outcome(use: Callable[[], object]) -> BaseException | None:
    """What using a damaged file ends in; damage may also do no harm."""
    try:
        use()
    except BaseException as error:
        return error
    return None


def _places(tree: Any):
    """(container, key) of every value in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)
