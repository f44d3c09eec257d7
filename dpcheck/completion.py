"""Completion of the command in shells, made of the parsers of its subcommands."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Option:
    """One option: its names, its choices, whether it takes a value, and its help."""

    names: tuple[str, ...]
    choices: tuple[str, ...]
    takes_value: bool
    help: str


def options_of(commands: tuple[str, ...]) -> dict[str, tuple[Option, ...]]:
    """The options of each subcommand, and of ``dpcheck FILE`` under the empty name."""
    modules = {"": "check", **{name: name for name in commands}}
    return {name: _options(import_module(f"dpcheck.options.{module}").parser()) for name, module in modules.items()}


def _options(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    shown = [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]
    return tuple(
        Option(tuple(a.option_strings), tuple(map(str, a.choices or ())), a.nargs != 0, (a.help or "").split("\n")[0])
        for a in shown
    )


def bash(options: Mapping[str, tuple[Option, ...]]) -> str:
    """A script that bash sources, and zsh behind :func:`zsh`'s first lines."""
    commands = " ".join(name for name in options if name)
    choices = [
        f"    {shlex.quote(f'{command} {name}')}) words={shlex.quote(' '.join(o.choices))}; COMPREPLY=($(compgen -W "
        '"$words" -- "$cur")); return;;'
        for command, own in options.items()
        for o in own
        for name in o.names
        if o.choices
    ]
    words = [
        f"    {shlex.quote(command)}) words={shlex.quote(' '.join(name for o in own for name in o.names))};;"
        for command, own in options.items()
    ]
    return "\n".join(
        [
            "_dpcheck() {",
            '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" command="" words',
            f'  if [ "$COMP_CWORD" -gt 1 ]; then case " {commands} " in *" ${{COMP_WORDS[1]}} "*) '
            'command="${COMP_WORDS[1]}";; esac; fi',
            '  case "$command $prev" in',
            *choices,
            "  esac",
            '  case "$command" in',
            *words,
            "  esac",
            '  if [ "${cur#-}" != "$cur" ]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); return; fi',
            '  COMPREPLY=($(compgen -f -- "$cur"))',
            f'  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY+=($(compgen -W "{commands}" -- "$cur")); fi',
            "}",
            "complete -o filenames -F _dpcheck dpcheck",
            "",
        ]
    )


def zsh(options: Mapping[str, tuple[Option, ...]]) -> str:
    """The same by zsh's own emulation of bash's completion."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(options)}"


def fish(options: Mapping[str, tuple[Option, ...]]) -> str:
    """A script that fish sources."""
    commands = " ".join(name for name in options if name)
    lines = [f"complete -c dpcheck -n __fish_use_subcommand -a {_fish(commands)}"]
    for command, own in options.items():
        seen = f"__fish_seen_subcommand_from {command}" if command else f"not __fish_seen_subcommand_from {commands}"
        for o in own:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in o.names)
            value = f" -xa {_fish(' '.join(o.choices))}" if o.choices else " -r" if o.takes_value else ""
            lines.append(f"complete -c dpcheck -n {_fish(seen)} {names}{value} -d {_fish(o.help)}")
    return "\n".join([*lines, ""])


def _fish(text: str) -> str:
    """In fish's single quotes only a backslash and a quote are special."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
