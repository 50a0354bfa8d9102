"""``lowbit completion``."""

from __future__ import annotations

import click

from ..shells import SHELLS, script_for
from ..terminal import Output, common_options

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@common_options
@click.pass_context
def completion(context: click.Context, *, shell: str, as_json: bool) -> None:
    """Print a script that completes commands in SHELL.

    \b
    bash    lowbit completion bash > ~/.local/share/bash-completion/completions/lowbit
    zsh     lowbit completion zsh > ~/.zfunc/_lowbit      (with ~/.zfunc in fpath, before compinit)
    fish    lowbit completion fish > ~/.config/fish/completions/lowbit.fish

    It completes by itself, without starting Python at every key. Print it again after an update.

    \b
    Keys of --json:
      format, version   "lowbit-completion", 1
      shell, script     text
    """
    main = context.find_root().command
    assert isinstance(main, click.Group)
    with Output(as_json) as output:
        script = script_for(shell, main)
        data = {"format": "lowbit-completion", "version": 1, "shell": shell, "script": script}
        output.result(data, lambda console: click.echo(script, nl=False))
