"""Laws of calibration: data that are no numbers are refused, and so is conversion without data."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ...errors import CalibrationDataError, LowbitError, NotCalibratedError
from ...ir.attributes import find_attribute
from ...ir.clone import clone_graph_module
from ...ir.observers import StatisticObserver
from ...ir.stages import Stage
from .run import LawBroken, Run

__all__ = ["refuses_to_convert_without_data", "refuses_what_is_no_number"]


def refuses_what_is_no_number(run: Run) -> None:
    """Observers of inputs refuse NaN and infinity."""
    if run.pass_.ensures is not Stage.OBSERVED or not any(map(_sees_an_input, _observing(run.after))):
        return
    gm = clone_graph_module(run.after)
    gm.recompile()
    for value in (torch.nan, torch.inf):
        try:
            gm(*(torch.full_like(x, value) for x in run.inputs))
        except CalibrationDataError:
            continue
        raise LawBroken(f"calibrated with {value}, it does not complain")


def _observing(gm: GraphModule) -> list[Node]:
    """The calls of observers that keep a statistic."""
    calls = gm.graph.find_nodes(op="call_module")
    return [n for n in calls if isinstance(find_attribute(gm, str(n.target)), StatisticObserver)]


def _sees_an_input(node: Node) -> bool:
    (source,) = node.all_input_nodes
    value: Any = source.meta.get("val")
    return source.op == "placeholder" and isinstance(value, torch.Tensor) and value.numel() > 0


def refuses_to_convert_without_data(run: Run) -> None:
    """Where observers saw no data, there are no parameters to convert with."""
    if run.pass_.ensures is not Stage.QDQ:
        return
    gm = clone_graph_module(run.before)
    observers = [find_attribute(gm, str(node.target)) for node in _observing(gm)]
    # The weights are there to be looked at.
    waiting = [o for o in observers if isinstance(o, StatisticObserver) and not o.observe_once]
    if not waiting:
        return
    for observer in waiting:
        observer.reset()
    try:
        run.again(gm)
    except NotCalibratedError:
        return
    except LowbitError as error:
        raise LawBroken(f"converted without data, it says something else: {error}") from error
    raise LawBroken("it converts a graph whose observers never saw data")
