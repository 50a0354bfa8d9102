"""``lowbit backends``."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from ....backends.choosing import presets_for_calibration
from ....backends.registry import backend_names, get_backend
from ..quantizing.target import default_preset
from ..terminal import Output, common_options

__all__ = ["backends"]


@click.command()
@common_options
def backends(*, as_json: bool) -> None:
    """List the backends and their presets.

    Those that installed packages offer are among them. Several work on one model when they are joined:
    x86_inductor+embedding.

    \b
    Keys of --json:
      format, version   "lowbit-backends", 1
      backends          [{name, presets, training_presets, default_preset, is_default, runs_here,
                        lowered_here}]
    """
    with Output(as_json) as output:
        found = [_describe(name) for name in backend_names()]

        def show(console: Console) -> None:
            for each in found:
                presets = ", ".join(each["presets"]) or "none"
                taken = f"; {each['default_preset']} by default" if len(each["presets"]) > 1 else ""
                here = "" if each["runs_here"] else "; its kernels do not run on this machine"
                here = "; taken where none is named" if each["is_default"] else here
                console.print(f"{each['name']:14}  presets: {presets}{taken}{here}", soft_wrap=True)

        output.result({"format": "lowbit-backends", "version": 1, "backends": found}, show)


def _describe(name: str) -> dict[str, Any]:
    backend = get_backend(name)
    presets = [preset.name for preset in presets_for_calibration(backend)]
    return {
        "name": name,
        "presets": presets,
        "training_presets": [preset.name for preset in backend.presets if preset.name not in presets],
        "default_preset": default_preset(backend) if presets else None,
        "is_default": backend.is_default and backend.is_available(),
        "runs_here": backend.is_available(),
        "lowered_here": backend.lower is not None,
    }
