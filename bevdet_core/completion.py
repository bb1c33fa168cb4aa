"""Shell completion: a script that knows all verbs, options, settings and their fixed values, for bash and zsh."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import NamedTuple

from .config import all_kinds, choices, settings_of

SHELLS = ("bash", "zsh")

# bash makes a word of its own of the "=" in --option=value.
SCRIPT = """\
# bevdet completion for {shell}; put  eval "$(bevdet completion {shell})"  into your {file}
{prelude}_bevdet() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" verb="${{COMP_WORDS[1]}}" words=""
    local settings="{settings}"
    if [ "$word" = "=" ]; then
        word=""
    elif [ "$before" = "=" ]; then
        before="${{COMP_WORDS[COMP_CWORD-2]}}"
    fi
    if [ "$COMP_CWORD" -gt 2 ]; then
        case "$verb ${{COMP_WORDS[2]}}" in
            {parts}) verb="$verb ${{COMP_WORDS[2]}}" ;;
        esac
    fi
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs}"
    elif [[ "$word" == -* ]]; then
        case "$verb" in
{options}
        esac
    else
        case "$verb $before" in
{values}
        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o default -F _bevdet bevdet
"""


class Help(NamedTuple):
    """What the help of a verb names."""

    options: dict[str, list[str]]  # with the values of those that take only some
    values: list[str]  # of its first word, if only some are right
    parts: list[str]  # words after which it goes on with other options


def script(shell: str, verbs: Mapping[str, Callable[[list[str]], object]]) -> str:
    """The completion script of one of `SHELLS`; other words complete to file names.

    Args:
        shell: the shell.
        verbs: their functions, which explain themselves on `--help`.
    """
    settings = _settings()
    options, parts = [], []
    values = _cases({f'*" {setting}"': words for setting, words in settings.items()})
    for name, verb in verbs.items():
        told = _help(verb)
        known = {name: told.options} | {f"{name} {part}": _help(verb, part).options for part in told.parts}
        parts += [f'"{name} {part}"' for part in told.parts]
        values += _cases({f'"{name} {name}"': told.values + told.parts})
        for place, own in known.items():
            options += _cases({f'"{place}"': [*own, *["$settings"] * ("--help_settings" in own)]})
            values += _cases({f'"{place} {option}"': words for option, words in own.items()})
    zsh = shell == "zsh"
    return SCRIPT.format(
        shell=shell,
        file="~/.zshrc" if zsh else "~/.bashrc",
        prelude="autoload -U +X bashcompinit && bashcompinit\n" if zsh else "",
        settings=" ".join(settings),
        verbs=" ".join(verbs),
        parts="|".join(parts),
        options="\n".join(options),
        values="\n".join(values),
    )


def _cases(words: Mapping[str, list[str]]) -> list[str]:
    return [f'            {place}) words="{" ".join(offered)}" ;;' for place, offered in words.items() if offered]


def _settings() -> dict[str, list[str]]:
    """Every setting as an option, with the values of those that take only some."""
    found: dict[str, list[str]] = {}
    for section, kind in all_kinds():
        for setting in settings_of(kind, section):
            if not is_dataclass(setting.kind):
                words = found.setdefault(f"--{setting.name}", [])
                words += [word for word in choices(setting.kind) if word not in words]
    return found


def _help(verb: Callable[[list[str]], object], *words: str) -> Help:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        verb([*words, "--help"])
    text = told.getvalue()
    options: dict[str, list[str]] = {}
    for line in re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE):
        options |= dict.fromkeys(re.findall(r"--\w+", line), _choices(line))
    (values,) = re.findall(r"^  (\{.*?\})(?:  |$)", text, re.MULTILINE)[:1] or [""]
    return Help(options, _choices(values), re.findall(r"^    (\w+)  ", text, re.MULTILINE))


def _choices(text: str) -> list[str]:
    found = re.search(r"\{(.*?)\}", text)
    return found[1].split(",") if found else []
