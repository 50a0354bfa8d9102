"""The command line: ``lowbit``."""

from __future__ import annotations

from typing import Final

import click

from .commands.backends import backends
from .commands.bisect import bisect
from .commands.capabilities import capabilities
from .commands.completion import completion
from .commands.costly import costly
from .commands.demo import demo
from .commands.diff import diff
from .commands.doctor import doctor
from .commands.explain import explain
from .commands.opt import opt
from .commands.passes import passes
from .commands.quantize import quantize_command
from .commands.reduce import reduce
from .commands.replay import replay
from .group import CommandGroup

__all__ = ["main"]


_HELP: Final = ["-h", "--help"]


@click.group(cls=CommandGroup, context_settings={"help_option_names": _HELP})
@click.version_option(package_name="lowbit", prog_name="lowbit")
def main() -> None:
    """Quantize PyTorch models with compiler passes on FX graphs.

    \b
    lowbit quantize my_model:build --calibration data.npz --output int8.pt2
    lowbit doctor

    Every command takes --json, which prints one JSON document, ended by notes and warnings, and tells errors
    as JSON on stderr; and --traceback, which shows where an error came from.
    """


for _command in (
    backends,
    bisect,
    capabilities,
    completion,
    costly,
    demo,
    diff,
    doctor,
    explain,
    opt,
    passes,
    quantize_command,
    reduce,
    replay,
):
    # click keeps the help option of the first call, which may be of the command without its group.
    _command.context_settings.setdefault("help_option_names", _HELP)
    main.add_command(_command)
