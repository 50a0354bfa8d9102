"""Training and evaluation as properties of a graph.

An exported graph has the mode it was exported in written into its calls: BatchNorm's ``training``, dropout's
``train``, the counters that training counts up. Here they are switched, and switched back to what they were.
What is a literal stays: the probability of dropout, BatchNorm's epsilon and momentum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import attrs
import torch
from torch.fx import GraphModule, Node

from .attributes import nested_graph_modules
from .batch_norm import BATCH_NORMS
from .conv_bn import enter_evaluation, enter_training
from .conv_bn_writer import Block
from .meta import BLOCK_KEY, QAT_KEY, TRAINING_KEY
from .schema import OpOverload, argument, signature

__all__ = [
    "DROPOUTS",
    "drop_idle",
    "freeze_batch_norms",
    "switch_to_evaluation",
    "to_evaluation",
    "to_training",
]

_aten = torch.ops.aten
_COUNTER = "num_batches_tracked"

DROPOUTS = (
    _aten.dropout.default,
    _aten.dropout_.default,
    _aten.feature_dropout.default,
    _aten.feature_dropout_.default,
    _aten.alpha_dropout.default,
    _aten.alpha_dropout_.default,
    _aten.feature_alpha_dropout.default,
    _aten.feature_alpha_dropout_.default,
)


@attrs.frozen
class _Switch:
    """An argument of one call that depends on the mode.

    Args:
        node: the call.
        name: the argument.
        off: its value in evaluation.
        on: its value in training, where nothing was noted; None where it cannot be known.
    """

    node: Node
    name: str
    off: Any
    on: Any

    @property
    def value(self) -> Any:
        return argument(self.node, self.name)

    def set(self, value: Any) -> None:
        index = signature(cast(OpOverload, self.node.target)).positional.get(self.name)
        if index is not None and index < len(self.node.args):
            self.node.update_arg(index, value)
        else:
            self.node.update_kwarg(self.name, value)


def to_evaluation(gm: GraphModule) -> None:
    """Switch ``gm`` and its nested graphs to evaluation; what was so stays so.

    BatchNorm runs on its running statistics, dropout drops nothing, counters stand still. What the calls were
    in training is noted, for :func:`to_training`.
    """
    switch_to_evaluation(gm)
    for module in (gm, *nested_graph_modules(gm)):
        module.recompile()


def switch_to_evaluation(gm: GraphModule) -> None:
    """:func:`to_evaluation`, but for generating code."""
    for module in (gm, *nested_graph_modules(gm)):
        enter_evaluation(module)
        for switch in _switches(module):
            if switch.value != switch.off:
                switch.node.meta[TRAINING_KEY] = switch.value
                switch.set(switch.off)
    torch.nn.Module.train(gm, False)


def to_training(gm: GraphModule) -> None:
    """Switch ``gm`` and its nested graphs to training.

    After :func:`to_evaluation` this restores what was. A float graph in which nothing is in training mode
    (one that was exported in evaluation) is switched throughout, but for frozen BatchNorms; in any other, and
    in one prepared for training, what stands in evaluation was put so deliberately, and stays.
    """
    modules = (gm, *nested_graph_modules(gm))
    throughout = QAT_KEY not in gm.meta and not any(_trains(module) for module in modules)
    for module in modules:
        enter_training(module)
        for switch in _switches(module):
            was = switch.node.meta.get(TRAINING_KEY, switch.on if throughout else None)
            if was is not None:
                switch.set(was)
            if was != switch.off:
                # What is frozen keeps its note.
                switch.node.meta.pop(TRAINING_KEY, None)
        module.recompile()
    torch.nn.Module.train(gm, True)


def drop_idle(gm: GraphModule) -> None:
    """Erase what does nothing in evaluation, for good: dropouts, and counters of batches."""
    for module in (gm, *nested_graph_modules(gm)):
        for switch in list(_switches(module)):
            node = switch.node
            if switch.value != switch.off:
                continue
            if node.target in DROPOUTS:
                source = cast(Node, node.args[0])
                # The body of a control-flow operator may not return its input.
                if module is not gm and source.op == "placeholder":
                    continue
                node.replace_all_uses_with(source)
                module.graph.erase_node(node)
            elif node.target is _aten.add_.Tensor and not node.users:
                module.graph.erase_node(node)


def freeze_batch_norms(gm: GraphModule) -> None:
    """Let the BatchNorms of ``gm`` run on their running statistics from now on, in training too.

    Their counters of batches stand still.
    """
    for module in (gm, *nested_graph_modules(gm)):
        means: list[str] = []
        for node in module.graph.nodes:
            block: Block | None = node.meta.get(BLOCK_KEY)
            if block is not None:
                node.meta[BLOCK_KEY] = attrs.evolve(block, training=False)
                means.append(block.mean)
        switches = list(_switches(module))
        norms = [switch for switch in switches if switch.node.target in BATCH_NORMS]
        means += [str(cast(Node, argument(norm.node, "running_mean")).target) for norm in norms]
        names = {mean.removesuffix("running_mean") + _COUNTER for mean in means}
        counters = [switch for switch in switches if _counter_of(switch.node) in names]
        for switch in (*norms, *counters):
            switch.set(switch.off)
            # As a note that it was so in training too.
            switch.node.meta[TRAINING_KEY] = switch.off
        module.recompile()


def _trains(gm: GraphModule) -> bool:
    """Whether anything in the graph is in training mode, or was before the graph went to evaluation."""
    return any(switch.node.meta.get(TRAINING_KEY, switch.value) != switch.off for switch in _switches(gm))


def _switches(gm: GraphModule) -> Iterator[_Switch]:
    for node in gm.graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        if node.target is _aten.add_.Tensor:
            if _counter_of(node) is not None:
                yield _Switch(node, "other", 0, 1)
        elif node.target is _aten.scaled_dot_product_attention.default:
            yield _Switch(node, "dropout_p", 0.0, None)
        else:
            name = _mode_argument(node)
            if name is not None:
                yield _Switch(node, name, False, True)


def _counter_of(node: Node) -> str | None:
    """The counter of batches that a call counts up, by name."""
    counter = node.args[0] if node.target is _aten.add_.Tensor else None
    name = str(counter.target) if isinstance(counter, Node) else ""
    return name if name.endswith(_COUNTER) else None


def _mode_argument(node: Node) -> str | None:
    """The argument of a call that says whether it trains, by the names that ATen gives to it."""
    positional = signature(cast(OpOverload, node.target)).positional
    for name in ("training", "train", "use_input_stats"):
        if name in positional and isinstance(argument(node, name), bool):
            # Without running statistics, BatchNorm uses those of the batch in evaluation as well.
            statistics = next((n for n in ("running_mean", "running_var") if n in positional), None)
            return name if statistics is None or argument(node, statistics) is not None else None
    return None
