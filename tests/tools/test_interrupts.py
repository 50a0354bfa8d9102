"""Ctrl-C while torch is being imported: the command ends as it does later, and programs as they always do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

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

# Where these tests run in the background, a shell may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder)
sys.argv = sys.argv[1:]
import lowbit
"""


def stopped(*words: str) -> subprocess.CompletedProcess[str]:
    """A process that is interrupted as it begins to import torch."""
    return subprocess.run(
        [sys.executable, "-c", STOPPED, *words], capture_output=True, text=True, check=False
    )


SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize("name", [str(SCRIPTS / "lowbit"), str(SCRIPTS / "lowbit.exe")])
def test_the_command_ends_as_it_does_later(name: str) -> None:
    later = describe(click.Abort(), with_traceback=False)
    ended = stopped(name, "doctor")
    assert (ended.returncode, ended.stdout, ended.stderr) == (later.exit_code, "", f"\n{later}\n")
    ended = stopped(name, "doctor", "--json")
    assert ended.returncode == later.exit_code
    assert json.loads(ended.stderr) == later.as_data()


@pytest.mark.parametrize("name", ["my_program", "/home/me/lowbit", str(SCRIPTS / "pytest")])
def test_other_programs_are_left_as_they_are(name: str) -> None:
    ended = stopped(name, "doctor")
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr.endswith("\nKeyboardInterrupt\n")


def test_the_command_catches_it_itself_once_it_runs() -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv[0] = {str(SCRIPTS / 'lowbit')!r}; from lowbit.tools.cli import main\n"
        "assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler\n"
        "try: main(['completion', '--help'])\n"
        "except SystemExit: assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


WORKER = """
import multiprocessing, signal, sys

def imports_it(_):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import lowbit
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler

if __name__ == "__main__":
    sys.argv[0] = COMMAND
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(imports_it, [0]) == [True]
"""


def test_workers_of_the_command_are_left_as_they_are(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.replace("COMMAND", repr(str(SCRIPTS / "lowbit"))))
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
