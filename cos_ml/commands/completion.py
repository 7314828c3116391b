"""Completion of ``cos-ml`` in shells (driver side)."""

from __future__ import annotations

import argparse
import re
from typing import Any

__all__ = ["add"]

BASH = """\
_cos_ml() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
        1:*) words="{commands}" ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
    (( COMP_CWORD > 1 )) || COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o filenames -F _cos_ml cos-ml
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def add(commands: Any) -> None:
    """Add ``completion``, which prints a script that completes all commands."""
    one = commands.add_parser(
        "completion",
        help="print a script that completes commands, flags and Params in a shell",
        description='Print a script of completions. In bash: eval "$(cos-ml completion bash)"; in fish: '
        "cos-ml completion fish | source",
    )
    one.add_argument("shell", choices=("bash", "zsh", "fish"))
    one.set_defaults(command=lambda shell: print(_script(shell, commands.choices), end=""))


def _script(shell: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    from cos_ml import DeepNetEstimator, DeepNetModel
    from cos_ml.commands.flags import COMMANDS, names
    from cos_ml.commands.settings import names_of_params

    words = {}
    for name, parser in commands.items():
        if name in COMMANDS:
            stage = DeepNetEstimator if name == "train" else DeepNetModel
            found = [f"--{flag.replace('_', '-')}" for flag in [*names(name), *names_of_params(stage)]]
        else:
            found = _words(parser)
        words[name] = list(dict.fromkeys(found))
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(f'        *:{name}) words="{" ".join(found)}" ;;' for name, found in words.items())
    script = BASH.format(commands=" ".join(words), cases=cases)
    return ZSH + script if shell == "zsh" else script


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser, which are in its help."""
    return re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", parser.format_help())


def _fish(words: dict[str, list[str]]) -> str:
    lines = [f"complete -c cos-ml -n __fish_use_subcommand -xa '{' '.join(words)}'"]
    for name, found in words.items():
        lines += [
            f"complete -c cos-ml -n '__fish_seen_subcommand_from {name}' -{'l' if flag[:2] == '--' else 'o'} "
            f"{flag.lstrip('-')} -r"
            for flag in found
        ]
    return "\n".join(lines) + "\n"
