"""Completion for shells, as scripts that hold all words, so that no key waits for Python to start."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Final

import attrs
import click

__all__ = ["SHELLS", "script_for"]


@attrs.frozen
class _Option:
    """An option: its names, the values it may have if they are few, whether it takes one, what it does."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    takes_value: bool
    does: str


@attrs.frozen
class _Command:
    """A command, its options, and the words that may follow it."""

    name: str
    does: str
    options: tuple[_Option, ...]
    words: tuple[str, ...]


def script_for(shell: str, main: click.Group) -> str:
    """The script of one of :data:`SHELLS` that completes ``lowbit`` and its commands."""
    commands = tuple(
        _read(name, command) for name, command in sorted(main.commands.items()) if not command.hidden
    )
    top = attrs.evolve(_read("", main), words=tuple(command.name for command in commands))
    return _SCRIPTS[shell](top, commands)


def _read(name: str, command: click.Command) -> _Command:
    context = click.Context(command, info_name=name or "lowbit", **command.context_settings)
    options: list[_Option] = []
    words: tuple[str, ...] = ()
    for parameter in command.get_params(context):
        items = parameter.type.shell_complete(context, parameter, "")
        values = tuple(str(item.value) for item in items if item.type == "plain")
        if not isinstance(parameter, click.Option):
            words = values
        elif not parameter.hidden:
            takes_value = not (parameter.is_flag or parameter.count)
            does = re.split(r"(?<=\.) ", parameter.help or "")[0]
            options.append(_Option((*parameter.opts,), values if takes_value else (), takes_value, does))
    return _Command(name, command.get_short_help_str(80), tuple(options), words)


def _cases(top: _Command, commands: tuple[_Command, ...]) -> Iterator[tuple[str, str]]:
    """``command option`` with what may follow, then ``command`` alone: patterns of a case, and words."""
    for command in commands:
        for option in command.options:
            if option.takes_value:
                pattern = "|".join(shlex.quote(f"{command.name} {name}") for name in option.names)
                yield pattern, " ".join(option.values)
    for command in (top, *commands):
        names = [name for option in command.options for name in option.names]
        yield f"{shlex.quote(f'{command.name} ')}*", " ".join([*command.words, *names])


def _bash(top: _Command, commands: tuple[_Command, ...]) -> str:
    # Where no word fits, -o default has the shell offer files.
    lines = [
        "_lowbit() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
        '    local command="" words="" i',
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        if [[ "${COMP_WORDS[i]}" != -* ]]; then command="${COMP_WORDS[i]}"; break; fi',
        "    done",
        '    case "$command $previous" in',
        *(f"        {pattern}) words={shlex.quote(words)} ;;" for pattern, words in _cases(top, commands)),
        "    esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _lowbit lowbit",
    ]
    return "\n".join(lines) + "\n"


def _zsh(top: _Command, commands: tuple[_Command, ...]) -> str:
    lines = [
        "#compdef lowbit",
        "_lowbit() {",
        "    local previous=${words[CURRENT-1]} command= found= each",
        "    for each in ${words[2,CURRENT-1]}; do",
        "        if [[ $each != -* ]]; then command=$each; break; fi",
        "    done",
        '    case "$command $previous" in',
        *(f"        {pattern}) found={shlex.quote(words)} ;;" for pattern, words in _cases(top, commands)),
        "    esac",
        "    compadd -- ${=found} || _files",
        "}",
        'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _lowbit "$@"; else compdef _lowbit lowbit; fi',
    ]
    return "\n".join(lines) + "\n"


def _fish(top: _Command, commands: tuple[_Command, ...]) -> str:
    lines: list[str] = []
    for command in commands:
        begin = "complete -c lowbit -n __fish_use_subcommand -f"
        lines.append(f"{begin} -a {command.name} -d {_fish_text(command.does)}")
    for command in (top, *commands):
        seen = f'"__fish_seen_subcommand_from {command.name}"' if command.name else "__fish_use_subcommand"
        begin = f"complete -c lowbit -n {seen}"
        if command.name and command.words:
            lines.append(f"{begin} -f -a {_fish_text(' '.join(command.words))}")
        for option in command.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = (
                f"-x -a {_fish_text(' '.join(option.values))}" if option.values else "-r" * option.takes_value
            )
            lines.append(" ".join(filter(None, (begin, names, value, "-d", _fish_text(option.does)))))
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: Final[dict[str, Callable[[_Command, tuple[_Command, ...]], str]]] = {
    "bash": _bash,
    "fish": _fish,
    "zsh": _zsh,
}
SHELLS: Final = tuple(_SCRIPTS)
"""The shells that there are scripts for."""
