"""Renaming state dicts between this library and official releases, both ways, by one readable table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..checkpoint import CheckpointError


@dataclass(frozen=True)
class Layout:
    """How an official release stores a model.

    In a name `#` stands for a number and a final `*` for any ending; both sides of a rule hold the same ones in the
    same order.

    Args:
        release: what messages call it.
        rules: pairs of our name and the official one; the first that fits decides.
        involutions: our name -> function of the tensor that, applied twice, changes nothing. It is applied on the way
            in and on the way out. Those in use permute and flip signs, so gradients convert as weights do.
        ignored: official names without a place here.
    """

    release: str
    rules: Sequence[tuple[str, str]]
    involutions: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    ignored: Sequence[str] = ()

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict with an official one's values.

        Raises:
            CheckpointError: keys that the release does not have, by name.
        """
        out, unknown = {}, []
        for key, tensor in state_dict.items():
            name = _rename(key, [(theirs, ours) for ours, theirs in self.rules])
            if name is not None:
                out[name] = self._convert(name, tensor)
            elif not any(_pattern(ignored).fullmatch(key) for ignored in self.ignored):
                unknown.append(key)
        if unknown:
            raise CheckpointError(f"keys that a {self.release} checkpoint does not have: {', '.join(unknown)}")
        return out

    def to_official(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official state dict with our values; also converts gradients, named as their parameters.

        Raises:
            CheckpointError: names without an official counterpart.
        """
        out, unknown = {}, []
        for name, tensor in weights.items():
            key = _rename(name, self.rules)
            if key is None:
                unknown.append(name)
            else:
                out[key] = self._convert(name, tensor)
        if unknown:
            raise CheckpointError(f"the {self.release} layout has no place for: {', '.join(unknown)}")
        return out

    def _convert(self, name: str, tensor: Tensor) -> Tensor:
        for pattern, function in self.involutions.items():
            if _pattern(pattern).fullmatch(name):
                return function(tensor)
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
