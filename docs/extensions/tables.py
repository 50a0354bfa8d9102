"""Directives that put what :mod:`generated` writes into a page."""

from __future__ import annotations

from docutils.nodes import Node
from generated import DIRECTIVES
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """The part that has the name of the directive, parsed as Markdown."""

    def run(self) -> list[Node]:
        """The part as nodes."""
        return self.parse_text_to_nodes(DIRECTIVES[self.name](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add a directive for each part."""
    for name in DIRECTIVES:
        app.add_directive(name, Generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
