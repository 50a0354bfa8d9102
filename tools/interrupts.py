"""Ctrl-C while the command ``lowbit`` is still importing torch, which takes seconds.

It ends then as it ends later, without a traceback of imports. The package imports this first, and it needs
nothing but the standard library. Programs that import lowbit are left as they are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["imports_are_done"]

_INTERRUPTED: Final = 130


def _end(_: int, __: FrameType | None) -> None:
    """End the process at once: nothing was begun yet, and what imports may catch exceptions."""
    text = "error: interrupted"
    if "--json" in sys.argv:
        # As lowbit.tools.cli.failures has it.
        error = {"format": "lowbit-error", "version": 1, "exit_code": _INTERRUPTED, "kind": "Abort"}
        said = {"found": "interrupted", "where": [], "hint": "", "pass": None, "traceback": None}
        text = json.dumps(error | said)
    sys.stderr.write(f"\n{text}\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


def imports_are_done() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as the command catches that from now on."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_the_command() -> bool:
    """Whether this is the console script: no worker of it, and no other program of that name."""
    script = Path(*sys.argv[:1])
    return (
        script.stem == "lowbit"
        and script.parent == Path(sys.executable).parent
        and multiprocessing.parent_process() is None
        and threading.current_thread() is threading.main_thread()
    )


# In the background, a shell may have it ignored.
if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
