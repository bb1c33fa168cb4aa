"""Packages that not everybody needs, and how to get them: the extras of this one."""

from __future__ import annotations

from importlib.util import find_spec


def require(extra: str, what: str, *packages: str) -> None:
    """Check that packages can be imported, without importing them.

    Args:
        extra: that brings them along.
        what: is done with them, for the message.
        packages: by the names under which they are imported.

    Raises:
        ImportError: one is not installed; the message has the command that helps.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise ImportError(
            f"{what} needs the package{plural} {', '.join(missing)}, not installed here: "
            f"pip install 'bevdet-core[{extra}]'"
        )
