"""``lowbit doctor``."""

from __future__ import annotations

import attrs
import click
from rich.console import Console
from rich.text import Text

from ..doctor import examine
from ..failures import FOUND
from ..terminal import Output, common_options, print_table

__all__ = ["doctor"]

_STYLES = {"ok": "green", "note": "cyan", "slow": "yellow", "wrong": "red"}


@click.command()
@common_options
def doctor(*, as_json: bool) -> None:
    """Look at what matters on this machine.

    What would fail, be slow or compute wrong numbers here, and what to do about it: torch, the C++ compiler,
    the CPU, threads, backends and optional packages. The exit code is 1 if something is wrong.

    \b
    Keys of --json:
      format, version   "lowbit-doctor", 1
      findings          [{name, found, status, means}]; status is ok, note, slow or wrong
    """
    with Output(as_json) as output:
        findings = list(examine())

        def show(console: Console) -> None:
            rows = [
                (
                    Text(each.status, style=_STYLES[each.status]),
                    each.name,
                    f"{each.found}. {each.means}" if each.means else each.found,
                )
                for each in findings
            ]
            print_table(console, ("", "looked at", "found"), rows)

        data = {"format": "lowbit-doctor", "version": 1, "findings": [attrs.asdict(f) for f in findings]}
        output.result(data, show)
    if any(finding.status == "wrong" for finding in findings):
        raise click.exceptions.Exit(FOUND)
