"""Faults seeded in passes, most of them in one application of a rule: bisecting must name that very one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import attrs
import pytest
from lowbit.passes import PassContext
from lowbit.tools.bisect import bisect
from lowbit.tools.bisect.steps import states
from torch.fx import Node

FBN = "passes.fold_batch_norm:_Folder"
QDQ = "passes.observers_to_qdq:_quantize_and_dequantize"
REF = "passes.reference."
X86 = "backends.x86_inductor."
FOLD = ("fold-batch-norm", "fold")
CONVERT = ("observers-to-qdq", "quantize-dequantize")
EMIT = "emit-inductor"
REFERENCE = "reference-representation"


@attrs.frozen
class Fault:
    """One fault.

    Args:
        what: what is wrong, in words.
        function: ``module:qualified.name`` of the function it is in, below ``lowbit``.
        old: text that occurs once in its source.
        new: what stands there instead.
        rule: the pass and the rule that the function is of.
        which: the applications of the rule to try it at, one after the other, counted from 0.
        flow: what is done with the model.
        everywhere: it is there all the time, and the application is the first that it shows in.
    """

    what: str
    function: str
    old: str
    new: str
    rule: tuple[str, str]
    which: tuple[int, ...] = (0,)
    flow: str = "lower"
    everywhere: bool = False


FAULTS = (
    # normalize
    Fault(
        "default not filled in",
        "ir.schema:complete_arguments",
        "sig.defaults[name]",
        "True",
        ("normalize", "complete-arguments"),
        (3,),
    ),
    Fault(
        "default of another argument",
        "ir.schema:complete_arguments",
        "sig.defaults[name]",
        "2",
        ("normalize", "complete-arguments"),
        (0, 2),
    ),
    Fault(
        "padding off by one",
        "passes.normalize:_padding_numbers",
        "(k - 1)",
        "(k + 1)",
        ("normalize", "padding-mode"),
        everywhere=True,
    ),
    Fault(
        "padding on one side",
        "passes.normalize:_padding_numbers",
        "t // 2 for",
        "0 for",
        ("normalize", "padding-mode"),
        everywhere=True,
    ),
    # fold-batch-norm
    Fault("epsilon dropped", f"{FBN}._folded", " + norm.eps", "", FOLD, (0, 1, 2)),
    Fault("epsilon of the default", f"{FBN}._folded", "norm.eps", "1e-5", FOLD, (1,)),
    Fault(
        "gamma forgotten", f"{FBN}._folded", "scale = scale * read(norm.weight).double()", "pass", FOLD, (2,)
    ),
    Fault(
        "mean added", f"{FBN}._folded", "shift = -read(norm.mean)", "shift = read(norm.mean)", FOLD, (0, 2)
    ),
    Fault(
        "bias forgotten", f"{FBN}._folded", "shift = shift + read(bias_node).double()", "pass", FOLD, (0, 1)
    ),
    Fault(
        "beta subtracted", f"{FBN}._folded", "shift + read(norm.bias)", "shift - read(norm.bias)", FOLD, (1,)
    ),
    Fault(
        "weight not written",
        f"{FBN}._place",
        "set_tensor(self.gm, target, tensor)",
        "set_tensor(self.gm, target, -tensor)",
        FOLD,
        (1, 2),
    ),
    Fault(
        "bias not written",
        f"{FBN}._rewrite",
        'producer.update_arg(index["bias"], new_bias)',
        "pass",
        FOLD,
        (2,),
    ),
    Fault(
        "channels of the wrong axis",
        "passes.fold_batch_norm:_scale_channels",
        "weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))",
        "weight.flip(0)",
        FOLD,
        (2,),
    ),
    Fault(
        "says unchanged",
        "passes.fold_batch_norm:FoldBatchNorm.run",
        "return bool(norms) and bool(",
        "return bool(norms) and not bool(",
        FOLD,
        everywhere=True,
    ),
    # insert-observers
    Fault(
        "observes the input",
        "passes.insert_observers:_Insertion._call",
        "(source,)",
        "(next(iter(self.gm.graph.nodes)),)",
        ("insert-observers", "observe"),
        (4, 6, 8),
    ),
    # observers-to-qdq
    Fault("zero point dropped", QDQ, "int(zero_point))", "0)", CONVERT, (5, 7)),
    Fault("scale doubled", QDQ, "(float(scale),", "(2 * float(scale),", CONVERT, (6, 7)),
    Fault("scale halved", QDQ, "(float(scale),", "(float(scale) / 64,", CONVERT, (10,)),
    Fault("wrong axis", QDQ, "observer.ch_axis)", "observer.ch_axis + 1)", CONVERT, (0, 3)),
    Fault(
        "range cut",
        QDQ,
        "(*qparams, quant_min, quant_max, dtype)",
        "(*qparams, quant_min, quant_max // 2, dtype)",
        CONVERT,
        (1, 4, 6),
    ),
    Fault(
        "scale for zero point",
        "passes.observers_to_qdq:_register_qparams",
        '(("scale", scale), ("zero_point", zero_point))',
        '(("scale", zero_point), ("zero_point", scale))',
        CONVERT,
        (2,),
    ),
    Fault(
        "scales of other channels",
        "passes.observers_to_qdq:_register_qparams",
        "set_tensor(gm, target, tensor)",
        "set_tensor(gm, target, tensor * 2)",
        CONVERT,
        (4,),
    ),
    Fault(
        "dequantized otherwise",
        QDQ,
        "(dequantize, (quantized, *arguments), named)",
        "(dequantize, (quantized, arguments[0], 3, *arguments[2:]), named)",
        CONVERT,
        (5, 9),
    ),
    Fault(
        "an observer left",
        "passes.observers_to_qdq:ObserversToQdq.run",
        "made[node] = _quantize",
        "made[observer] = _quantize",
        CONVERT,
        everywhere=True,
    ),
    # duplicate-dequantize, fold-quantize
    Fault(
        "copies of another scale",
        "passes.duplicate_dequantize:DuplicateDequantize.run",
        "gm.graph.node_copy(node)",
        "gm.graph.call_function(node.target, (node.args[0], 2.0, *node.args[2:]))",
        ("duplicate-dequantize", "duplicate"),
        everywhere=True,
    ),
    Fault(
        "says nothing of copies",
        "passes.duplicate_dequantize:DuplicateDequantize.run",
        "return bool(own)",
        "return False",
        ("duplicate-dequantize", "duplicate"),
        everywhere=True,
    ),
    Fault(
        "weight negated",
        "passes.fold_quantize:_fold",
        "set_tensor(gm, target, quantized)",
        "set_tensor(gm, target, -quantized)",
        ("fold-quantize", "fold"),
        (0, 2, 4),
    ),
    Fault(
        "readers of a weight left",
        "passes.fold_quantize:_fold",
        "node.replace_all_uses_with(constant)",
        "pass",
        ("fold-quantize", "fold"),
        (1, 3),
    ),
    Fault(
        "says nothing of weights",
        "passes.fold_quantize:FoldQuantize.run",
        "return bool(folded)",
        "return False",
        ("fold-quantize", "fold"),
        everywhere=True,
    ),
    # lowering
    Fault(
        "kernel without zero point",
        f"{X86}requantize:output_arguments",
        "output.scale, output.zero_point",
        "output.scale, 0",
        (EMIT, "conv2d-relu"),
    ),
    Fault(
        "kernel of another scale",
        f"{X86}requantize:output_arguments",
        "output.scale,",
        "output.scale / 4,",
        (EMIT, "linear-relu"),
    ),
    Fault(
        "linear without bias", f"{X86}linear:QLinear.emit", "bias_parameter(call)", "None", (EMIT, "linear")
    ),
    Fault(
        "convolution without bias",
        f"{X86}convolution:conv_arguments",
        "bias_parameter(call)",
        "None",
        (EMIT, "conv2d"),
    ),
    Fault(
        "input's zero point",
        f"{X86}convolution:conv_arguments",
        "(image, x.scale, x.zero_point,",
        "(image, x.scale, 0,",
        (EMIT, "conv2d-relu"),
    ),
    Fault(
        "packed with the default's padding",
        f"{X86}convolution:conv_arguments",
        "geometry = (stride, padding,",
        "geometry = (stride, [2] * len(kernel),",
        (EMIT, "conv2d-add-relu"),
    ),
    Fault(
        "relu dropped",
        f"{X86}post_operators:PostOperator.arguments",
        "self.attribute",
        '"none"',
        (EMIT, "linear-relu"),
    ),
    Fault(
        "another weight packed",
        "passes.pack_weights:_pack",
        "evaluate(gm, node)",
        "node.target(-gm.get_buffer(node.args[0].target), *("
        "gm.get_buffer(a.target) if isinstance(a, Node) else a for a in node.args[1:]))",
        ("pack-weights", "pack"),
        (0, 2, 4),
    ),
    # reference-representation
    Fault(
        "wrong lower bound",
        f"{REF}arithmetic:requantize",
        "output.quant_min, output",
        "0, output",
        (REFERENCE, "linear"),
        (0,),
        "reference",
    ),
    Fault(
        "output's zero point dropped",
        f"{REF}arithmetic:requantize",
        "if output.zero_point:",
        "if False:",
        (REFERENCE, "conv2d"),
        (0,),
        "reference",
    ),
    Fault(
        "input's zero point dropped",
        f"{REF}arithmetic:centered",
        "elif not zero_point:",
        "elif True:",
        (REFERENCE, "conv2d"),
        (1,),
        "reference",
    ),
    Fault(
        "groups dropped",
        f"{REF}weighted:_products",
        'argument(operator, "groups")',
        "1",
        (REFERENCE, "conv2d"),
        (1,),
        "reference",
    ),
    Fault(
        "bias in steps of nothing",
        f"{REF}weighted:_accumulator",
        "_over_channels(bias, dimensions) / scale",
        "_over_channels(bias, dimensions)",
        (REFERENCE, "linear"),
        (0,),
        "reference",
    ),
    Fault(
        "written out without zero point",
        f"{REF}write_out:write_quantize",
        "zero_point is not None and zero_point != 0",
        "False",
        (REFERENCE, "write-out-quantize"),
        (0,),
        "reference",
    ),
    # quantization-aware training
    Fault(
        "scale not taken back",
        "ir.conv_bn_writer:BlockWriter.unscaled_weight",
        "(quantized, divisor)",
        "(quantized, quantized)",
        ("fuse-conv-bn-qat", "fuse"),
        (0, 2),
        "prepare-training",
    ),
    Fault(
        "folded weight stored wrong",
        "passes.qat.fold_conv_bn:_store",
        "part.value,",
        "part.value * 2,",
        ("fold-conv-bn-qat", "fold"),
        (0, 1),
        "training",
    ),
)

CASES = [pytest.param(fault, at, id=f"{fault.what} {at}") for fault in FAULTS for at in fault.which]


@contextlib.contextmanager
def seeded(fault: Fault, node: str, mutate: ModuleType) -> Generator[None]:
    """With the fault in place: everywhere, or from when its rule asks about ``node`` to the next question."""
    function: Any = mutate.find(fault.function)
    before = function.__code__
    wrong = mutate.mutated(fault.what, function, fault.old, fault.new)
    allows = PassContext.allows

    def asked(self: PassContext, rule: str, at: Node) -> bool:
        answer = allows(self, rule, at)
        is_it = answer and (rule, at.name) == (fault.rule[1], node)
        function.__code__ = wrong if is_it else before
        return answer

    try:
        if fault.everywhere:
            function.__code__ = wrong
            yield
        else:
            with patch.object(PassContext, "allows", asked):
                yield
    finally:
        function.__code__ = before


@pytest.fixture(scope="module")
def asked(exact: Any) -> Any:
    """The rule applications of each pass of a flow without faults."""

    @functools.cache
    def applications(flow: str) -> dict[str, list[Any]]:
        passed = [state for state in states(exact.model, exact.steps(flow)) if state.pass_ is not None]
        return {state.pass_.name: state.seen.applied for state in passed}

    return applications


def test_there_are_enough_faults() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize(("fault", "at"), CASES)
def test_fault_is_found(fault: Fault, at: int, exact: Any, mutate: ModuleType, asked: Any) -> None:
    name, rule = fault.rule
    applied = asked(fault.flow)[name]
    number = [index for index, application in enumerate(applied) if application.rule == rule][at]
    with seeded(fault, applied[number].node, mutate):
        found = bisect(exact.model, exact.steps(fault.flow), exact.is_good)
    assert (found.verdict, found.pass_name) == ("found", name)
    assert found.application is not None
    assert (found.number, found.application.node) == (number + 1, applied[number].node)
    assert found.confirmed
