"""Ctrl-C while torch is being imported: the command ends as it does later, and programs as they always do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import click
import pytest
from lowbit.tools.cli.failures import describe

STOPPED = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
sys.argv = sys.argv[1:]
import lowbit
"""


def stopped(*words: str) -> subprocess.CompletedProcess[str]:
    """A process that is interrupted as it begins to import torch."""
    return subprocess.run(
        [sys.executable, "-c", STOPPED, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["/usr/bin/lowbit", "lowbit.exe"])
def test_the_command_ends_as_it_does_later(name: str) -> None:
    later = describe(click.Abort(), with_traceback=False)
    ended = stopped(name, "doctor")
    assert (ended.returncode, ended.stdout, ended.stderr) == (later.exit_code, "", f"\n{later}\n")
    ended = stopped(name, "doctor", "--json")
    assert ended.returncode == later.exit_code
    assert json.loads(ended.stderr) == later.as_data()


def test_other_programs_are_left_as_they_are() -> None:
    ended = stopped("my_program", "doctor")
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr.endswith("\nKeyboardInterrupt\n")


def test_the_command_catches_it_itself_once_it_runs() -> None:
    code = (
        "import signal, sys; sys.argv[0] = 'lowbit'; from lowbit.tools.cli import main\n"
        "assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler\n"
        "try: main(['completion', '--help'])\n"
        "except SystemExit: assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
