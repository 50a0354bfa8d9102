"""Graphs as text: short, for diffs and reports, and complete, for saving a graph at any stage."""

from .files import load_graph, save_graph
from .pickling import reduce_graph_module
from .reader import parse
from .short import format_annotation, format_arguments, format_spec, format_target, format_value
from .writer import to_tensors, to_text

__all__ = [
    "format_annotation",
    "format_arguments",
    "format_spec",
    "format_target",
    "format_value",
    "load_graph",
    "parse",
    "reduce_graph_module",
    "save_graph",
    "to_tensors",
    "to_text",
]
