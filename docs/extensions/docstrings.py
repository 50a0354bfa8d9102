"""How docstrings are read: a reference leads to where a thing is documented, whatever it is imported as.

A docstring may name an object by the module it is defined in, by a package that exports it, or, without a
module, as the code beside it does. What exists and has no entry of its own (internals, torch) stays code
without a link. What does not exist is a warning, and so an error.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

from docutils.nodes import Element, Node
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the events of Sphinx and autodoc."""
    app.connect("missing-reference", _resolve)
    # Before napoleon, which is connected at 500.
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: PLR0917
    """napoleon takes what the first line has before a colon for a type: of an attribute, of a result."""
    first = 0 if what in {"attribute", "data", "property"} else -1
    if "Returns:" in lines:
        first = lines.index("Returns:") + 1
    if 0 <= first < len(lines):
        # A line that is one word has no colon; as text, the two lines are one again.
        text = lines[first].lstrip()
        indent = lines[first][: -len(text)] if text else ""
        lines[first : first + 1] = [indent + part for part in text.split(maxsplit=1)]


def _resolve(app: Sphinx, env: BuildEnvironment, reference: pending_xref, text: Element) -> Node | None:
    if reference.get("refdomain") != "py":
        return None
    target = reference["reftarget"].lstrip(".~")
    domain = env.domains["py"]
    assert isinstance(domain, PythonDomain)
    for scope in _scopes(reference):
        path = f"{scope}.{target}" if scope else target
        found = _find(path)
        if found is not None:
            entry = domain.objects.get(path) or domain.objects.get(_defined(found[0]))
            return _link(app, reference, text, entry) if entry is not None else text
    return None


def _link(app: Sphinx, reference: pending_xref, text: Element, entry: ObjectEntry) -> Node:
    return make_refnode(app.builder, reference["refdoc"], entry.docname, entry.node_id, text)


def _scopes(reference: pending_xref) -> Iterator[str]:
    """Where the name may be defined: by itself, in the class or the module of the docstring, or around it."""
    yield ""
    yield "builtins"
    module, cls = reference.get("py:module") or "", reference.get("py:class") or ""
    if module and cls:
        yield f"{module}.{cls}"
        documented = _find(f"{module}.{cls}")
        if documented is not None:
            yield getattr(documented[0], "__module__", module)
    while module:
        yield module
        module = module.rpartition(".")[0]
    # An object that a package exports: what its signature names is known where it is defined.
    yield from sorted(name for name in sys.modules if name.startswith("lowbit."))


def _find(path: str) -> tuple[Any] | None:
    """The object of that dotted path, or None."""
    names = path.split(".")
    for split in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:split]))
        except ImportError:
            continue
        for name in names[split:]:
            if not hasattr(found, name):
                return None
            found = getattr(found, name)
        return (found,)
    return None


def _defined(found: Any) -> str:
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
