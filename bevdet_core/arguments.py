"""How the words of a command line are read: options, dotted settings, and what is wrong with a word."""

from __future__ import annotations

import argparse
import difflib
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, get_args

EPILOG = "--model.NAME, --data.NAME and --train.NAME override the configuration; --help_settings lists them all"


class UsageError(ValueError):
    """A command line that cannot be carried out as it stands."""


def parser_of(verb: str, function: Callable, settings: bool = True) -> argparse.ArgumentParser:
    """The parser of a verb, which its function explains; with `settings` it takes dotted ones too, see `parse`."""
    parser = _Parser(
        prog=f"bevdet {verb}", description=function.__doc__, epilog=EPILOG if settings else None, allow_abbrev=False
    )
    if settings:
        text = "list all settings, of a named configuration or run its own, and leave"
        parser.add_argument("--help_settings", action="store_true", help=text)
    return parser


def add_precision(parser: argparse.ArgumentParser) -> None:
    """The option for what a detector computes with."""
    from .config import Precision

    text = "default: fp32; bf16, fp16: faster where the hardware has units for them; auto: bf16 there, fp32 elsewhere"
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help=text)


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The verb's own options, and the dotted overrides: `--a.b value` or `--a.b=value`.

    Raises:
        UsageError: a setting without a value, or one that is given twice.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not (word.startswith("--") and "." in name):
            rest.append(word)
            continue
        for other in overrides:
            if other == name:
                raise UsageError(f"--{name} is given twice")
            if f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}."):
                raise UsageError(f"--{other} and --{name} are given, and one is a part of the other")
        overrides[name] = value if equals else _value(f"--{name}", words)
    if "--help_settings" in rest:
        _help_settings(rest)
        parser.exit()
    return parser.parse_args(rest), overrides


def file_path(text: str) -> Path:
    """The path of a file or folder."""
    if not text:
        raise ArgumentTypeError("a path must not be empty")
    return Path(text)


def folder_path(text: str) -> Path:
    """The path of a folder, which may be absent."""
    path = file_path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"{text} is a file, a folder is needed")
    return path


def trained_detector(text: str) -> Path:
    """The path of a trained detector, which a configuration is not: its answers would be those of random weights."""
    path = file_path(text)
    if path.suffix in (".yaml", ".yml"):
        raise ArgumentTypeError(f"{text} holds settings, no weights: give a run folder or a .safetensors file")
    return path


def whole_number(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def confidence(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"expected a score from 0 to 1, got {text!r}")
    return value


def image_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ArgumentTypeError(f"expected WIDTHxHEIGHT such as 800x450, got {text!r}")
    return int(width), int(height)


def one_of(names: Iterable[str], what: str) -> Callable[[str], str]:
    """One of some names; of another, the nearest is told."""
    valid = list(names)

    def checked(text: str) -> str:
        if text not in valid:
            nearest = difflib.get_close_matches(text, valid, n=1, cutoff=0.5) or valid
            raise ArgumentTypeError(f"no {what} {text!r}; nearest: {', '.join(nearest)}")
        return text

    return checked


_Parts = argparse._SubParsersAction  # has no public name


class _Parser(argparse.ArgumentParser):
    """Tells what may be meant where there is no such option."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments:.*?--([\w-]+)", message)
        if unknown:
            from .config import all_settings, nearest

            parts = [part for action in self._actions if isinstance(action, _Parts) for part in action.choices.values()]
            options = dict.fromkeys(option for parser in (self, *parts) for option in parser._option_string_actions)
            own = [option.removeprefix("--") for option in options if option.startswith("--")]
            close = nearest(unknown[1].replace("-", "_"), [*own, *(all_settings() if "help_settings" in own else ())])
            message += f"; did you mean {' or '.join(f'--{name}' for name in close)}?" if close else ""
        super().error(message)


def _help_settings(words: list[str]) -> None:
    """Print settings with types, defaults and meaning: those of the configuration or run that is named, or all."""
    from .config import all_kinds, kinds_of, read_settings, settings_help

    kinds, of = all_kinds(), "every detector and data set"
    for path in (Path(word) for word in words if not word.startswith("-")):
        beside = path / "config.yaml" if path.is_dir() else path.with_name("config.yaml")  # what a run leaves
        is_run = path.is_dir() or path.suffix == ".safetensors"
        file = path if path.suffix in (".yaml", ".yml") else beside if is_run and beside.is_file() else None
        if file is not None:
            kinds, of = [*kinds_of(read_settings(file)).items()], str(file)
            break
    print(f"settings of {of}, each as --NAME VALUE:\n\n{settings_help(kinds)}", end="")


def _value(option: str, words: Iterator[str]) -> str:
    value = next(words, None)
    if value is None:
        raise UsageError(f"{option} needs a value")
    if value.startswith("--") or value == "-h":
        raise UsageError(f"{option} needs a value, got the option {value}")
    return value
