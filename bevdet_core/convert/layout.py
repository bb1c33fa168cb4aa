"""Renaming state dicts between this library and official releases, both ways, by one readable table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_weights
from ..config import ConfigError
from ..documents import listed

Rule = tuple[str, "str | tuple[str, ...]"]


@dataclass(frozen=True)
class Layout:
    """How an official release stores a model.

    In a name `#` stands for a number and a final `*` for any ending; both sides of a rule hold the same ones in the
    same order.

    Args:
        release: what messages call it.
        rules: pairs of our name and the official one; the first that fits decides. Several official names share the
            rows of our tensor in equal parts.
        involutions: our name -> function of the tensor that, applied twice, changes nothing. It is applied on the way
            in and on the way out. Those in use permute and flip signs, so gradients convert as weights do.
        ignored: official names without a place here.
        copies: pairs of official names, the first of which repeats the tensor of the second.
    """

    release: str
    rules: Sequence[Rule]
    involutions: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    copies: Sequence[tuple[str, str]] = ()

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict with an official one's values.

        Raises:
            CheckpointError: keys that the release does not have, of which a part is missing, or that should repeat
                another tensor and do not, by name.
        """
        out: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        unknown = []
        passed_over = (*self.ignored, *(copy for copy, _ in self.copies))
        for key, tensor in state_dict.items():
            source = _rename(key, self.copies)
            if source is not None and source in state_dict and not torch.equal(tensor, state_dict[source]):
                raise CheckpointError(f"{key} differs from {source}, which a {self.release} checkpoint repeats there")
        # A file without repetitions may hold either of two names.
        originals = {_rename(key, self.copies) or key: tensor for key, tensor in state_dict.items()}
        for key, tensor in (originals | dict(state_dict)).items():
            name, shared = self._ours(key)
            if name is None:
                if not any(_pattern(template).fullmatch(key) for template in passed_over):
                    unknown.append(key)
            elif shared:
                parts.setdefault(name, {})[key] = tensor
            else:
                out[name] = self._convert(name, tensor)
        if unknown:
            raise CheckpointError(f"keys that a {self.release} checkpoint does not have:{listed(unknown)}")
        for name, found in parts.items():
            wanted = self._theirs(name)
            missing = [key for key in wanted if key not in found]
            if missing:
                raise CheckpointError(f"keys that a {self.release} checkpoint must have:{listed(missing)}")
            if len({tensor.shape for tensor in found.values()}) > 1:
                raise CheckpointError(f"keys that a {self.release} checkpoint has in one shape:{listed(wanted)}")
            out[name] = self._convert(name, torch.cat(torch.atleast_1d(*(found[key] for key in wanted))))
        return out

    def to_official(self, weights: Mapping[str, Tensor], copies: bool = True) -> dict[str, Tensor]:
        """The official state dict with our values; also converts gradients, named as their parameters.

        Args:
            weights: our state dict.
            copies: write tensors that the release repeats under several names as often.

        Raises:
            CheckpointError: names without an official counterpart.
        """
        out: dict[str, Tensor] = {}
        unknown = []
        for name, tensor in weights.items():
            keys = self._theirs(name)
            if not keys:
                unknown.append(name)
            elif len(keys) == 1:
                out[keys[0]] = self._convert(name, tensor)
            else:
                out.update(zip(keys, self._convert(name, tensor).chunk(len(keys)), strict=True))
        if unknown:
            raise CheckpointError(f"the {self.release} layout has no place for:{listed(unknown)}")
        if copies:
            rules = [(source, copy) for copy, source in self.copies]
            out |= {copy: out[key] for key in list(out) for copy in [_rename(key, rules)] if copy is not None}
        return out

    def _ours(self, key: str) -> tuple[str | None, bool]:
        """Our name for an official one, and whether it shares that with others."""
        for ours, theirs in self.rules:
            templates = (theirs,) if isinstance(theirs, str) else theirs
            name = _rename(key, [(template, ours) for template in templates])
            if name is not None:
                return name, len(templates) > 1
        return None, False

    def _theirs(self, name: str) -> list[str]:
        """The official names for one of ours; none where it has no place."""
        for ours, theirs in self.rules:
            templates = (theirs,) if isinstance(theirs, str) else theirs
            keys = [_rename(name, [(ours, template)]) for template in templates]
            if keys[0] is not None:
                return [key for key in keys if key is not None]
        return []

    def _convert(self, name: str, tensor: Tensor) -> Tensor:
        for pattern, function in self.involutions.items():
            if _pattern(pattern).fullmatch(name):
                try:
                    return function(tensor)
                except IndexError:
                    raise CheckpointError(f"{name}: shape {tuple(tensor.shape)}, too few rows for a box") from None
        return tensor


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """The name after the first rule whose left side fits."""
    for before, after in rules:
        match = _pattern(before).fullmatch(name)
        if match:
            parts = iter(match.groups())
            return re.sub(r"[#*]", lambda _: next(parts), after)  # noqa: B023
    return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)"))


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Puts the file's name before what is said about its content."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{file}: {error}") from None


def load_official(model: nn.Module, state_dict: Mapping[str, Tensor], layout: Layout, origin: str) -> None:
    """Load an official state dict into a model of this library.

    Batch counters of norms whose statistics are fixed have no place in either, and may be there or not. A tensor that
    several layers share may be there once.

    Raises:
        CheckpointError: keys that the release does not have, that are missing, or whose shapes differ, each by name.
    """
    own = model.state_dict()
    counters = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")}
    with naming(origin):
        taken = layout.from_official(state_dict)
    taken = {n: t for n, t in taken.items() if n in own or not n.endswith("num_batches_tracked")}
    by_place = {own[name].data_ptr(): tensor for name, tensor in taken.items() if name in own}
    shared = {name: by_place[t.data_ptr()] for name, t in own.items() if t.numel() and t.data_ptr() in by_place}
    load_weights(model, counters | shared | taken, origin)
