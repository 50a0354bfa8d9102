"""Objects of the user's, named on the command line as ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ....errors import OptionError
from ....passes.registry import unknown_name
from ..failures import in_code_of_yours

__all__ = ["call_user", "code_of", "find_object", "first_line", "import_user_module", "is_object_name"]

_NAME: Final = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.\w+)*):(?P<path>[A-Za-z_]\w*(?:\.\w+)*)")


def is_object_name(text: str) -> bool:
    """Whether ``text`` is of the form ``package.module:name``."""
    return _NAME.fullmatch(text) is not None


def find_object(name: str, is_usable: Callable[[Any], bool] = callable) -> Any:
    """The object that ``package.module:name`` names; the module is imported.

    Args:
        name: of that form.
        is_usable: whether an object may be meant, to be offered where there is none of that name.

    Raises:
        OptionError: there is no such module.
        UnknownNameError: the module has no such name; the hint has the nearest.
        Exception: what importing the module raised.
    """
    match = _NAME.fullmatch(name)
    assert match is not None
    found: Any = import_user_module(match["module"])
    for part in match["path"].split("."):
        if not hasattr(found, part):
            public = {
                key: value for key, value in getattr(found, "__dict__", {}).items() if not key.startswith("_")
            }
            known = tuple(key for key, value in public.items() if is_usable(value))
            raise unknown_name(f"object in {match['module']}", part, known)
        found = getattr(found, part)
    return found


def import_user_module(name: str) -> Any:
    """The module of that name, imported.

    Raises:
        OptionError: there is no such module.
        Exception: what importing it raised.
    """
    try:
        with code_of(f"importing {name}"):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that it imports itself may be missing, which is another matter.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise OptionError(f"there is no module {name!r}", hint=_where_it_may_be(name)) from error


def _where_it_may_be(name: str) -> str:
    here = [file.stem for file in sorted(Path().glob("*.py"))]
    if name.endswith(".py") and name.removesuffix(".py") in here:
        return f"name the module, not its file: {name.removesuffix('.py')}"
    near = difflib.get_close_matches(name, here, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "run the command in the folder where the module lies, or install its package"


def call_user(function: Callable[[], Any], name: str) -> Any:
    """What ``function`` returns, which is the user's and known as ``name``."""
    with code_of(name):
        return function()


@contextmanager
def code_of(who: str, *, where: Sequence[str] = (), hint: str = "") -> Generator[None]:
    """Note on what is raised inside that ``who`` raised it, at what and what to do, if that is known."""
    try:
        yield
    except SystemExit as stopped:
        # Its exit code would be taken for one of ours.
        error = RuntimeError(f"sys.exit({stopped.code!r}) was called")
        in_code_of_yours(error, who, where, hint)
        raise error from stopped
    except Exception as error:
        in_code_of_yours(error, who, where, hint)
        raise


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
