"""Shell completion: a script that knows all verbs, options and settings, for bash and zsh."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping

SHELLS = ("bash", "zsh")

SCRIPT = """\
# bevdet completion for {shell}; put  eval "$(bevdet completion {shell})"  into your {file}
{prelude}_bevdet() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs}"
    elif [[ "$word" == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o default -F _bevdet bevdet
"""


def script(shell: str, verbs: Mapping[str, Callable[[list[str]], object]]) -> str:
    """The completion script of one of `SHELLS`; other words complete to file names.

    Args:
        shell: the shell.
        verbs: their functions, which explain themselves on `--help`.
    """
    settings = [word for word in _options(verbs["train"], "--help_settings") if "." in word]
    cases = []
    for name, verb in verbs.items():
        options = _options(verb, "--help")
        if "--help_settings" in options:
            options += settings
        cases.append(f'            {name}) words="{" ".join(options)}" ;;')
    zsh = shell == "zsh"
    return SCRIPT.format(
        shell=shell,
        file="~/.zshrc" if zsh else "~/.bashrc",
        prelude="autoload -U +X bashcompinit && bashcompinit\n" if zsh else "",
        verbs=" ".join(verbs),
        cases="\n".join(cases),
    )


def _options(verb: Callable[[list[str]], object], *words: str) -> list[str]:
    """The options that a verb's help names."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        verb([*words])
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.]*\w", told.getvalue())))
