"""The reason codes of the ledger: what each means, and what to do about it.

A code says why an operator stays float, or as a note what more could have been done where it does not. Codes
of all backends are here; a backend registers those of its own, also one of another package. Nothing but what
people read depends on the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from ..errors import DuplicateReasonError

__all__ = ["REASONS", "Reason", "register_reasons"]


@attrs.frozen
class Reason:
    """What a code means.

    Args:
        meaning: one sentence.
        advice: what to do about it, one sentence, in the words of Python.
        in_command: the same in the words of the command ``lowbit``, "" where they are no others.
    """

    meaning: str
    advice: str
    in_command: str = ""


_NOTHING: Final = "nothing: there is no faster way to run it"
_CONFIGURE: Final = (
    "let a configuration select it (set_global, set_module_name), or leave it float",
    "leave --left-float out for its module, or leave it float",
)
_OTHER_MODE: Final = (
    "leave it float, or use a preset of that mode (set_global; for a part of the model set_module_type)",
    "leave it float, or use a preset of that mode (--preset)",
)
_CONSTANT: Final = "let the forward read a parameter or buffer directly, and write to none of them"
_OWN_PRESET: Final = "quantize with a preset of the backend that the model is lowered for"
_ONE_READER: Final = "read the value in one place only, or compute it once for each reader"
_SHAPE: Final = "reshape the tensor before the operator, or leave it float"
_OUT_OF_PLACE: Final = "write it out of place in the model: y = x.relu() rather than x.relu_()"
_LITERAL: Final = "use the function of the pattern in the model, if that is what is meant"
_SPLIT: Final = "export what is in the region by itself, without the region around it"

_SELECTION: Final = {
    "not-configured": Reason(
        "no configuration applies to the operator, or it was set to stay float", *_CONFIGURE
    ),
    "not-annotated": Reason(
        "the quantizer neither annotated the operator nor said why",
        "let annotate() of the quantizer annotate it",
    ),
    "static-only": Reason("what the backend has for it is for static quantization alone", *_OTHER_MODE),
    "static-or-dynamic-only": Reason("what the backend has for it quantizes activations too", *_OTHER_MODE),
    "dynamic-only": Reason("what the backend has for it is for dynamic quantization alone", *_OTHER_MODE),
    "weight-only": Reason("what the backend has for it quantizes the weight alone", *_OTHER_MODE),
    "half-weight-only": Reason("what the backend has for it takes float16 weights alone", *_OTHER_MODE),
    "no-pattern": Reason(
        "the backend has no operator pattern for it",
        "leave it float, or write it with operators that have one: quantizer.quantization_capabilities()",
        "leave it float, or write it with operators that have one: lowbit capabilities lists them",
    ),
    "training-only": Reason("the operator is not there in inference", "nothing: it costs nothing then"),
    "control-flow-body": Reason(
        "it is in a body of control flow that no pass goes into; the detail says why",
        "move the operator out of the body, or choose the branch before exporting",
    ),
    "body-not-calibrated": Reason(
        "it is in a branch or loop that no calibration batch ran, so nothing is known of its tensors",
        "calibrate with data that takes every branch",
    ),
}

_MATCHING: Final = {
    "different-target": Reason("another operator stands where the pattern has one", _NOTHING),
    "different-literal": Reason("an argument makes it another function than the pattern's", _LITERAL),
    "different-length": Reason("it has another number of tensors or arguments than the pattern", _LITERAL),
    "different-node": Reason("two places of the pattern would be one node, or one would be two", _NOTHING),
    "not-a-node": Reason("a number or nothing stands where the pattern has a tensor", _LITERAL),
    "unexpected-node": Reason("a tensor stands where the pattern has a number", "make it a Python number"),
    "second-user": Reason("a value inside the pattern is read outside it too", _ONE_READER),
    "input-inside": Reason("an input of the pattern is computed from a part of it", _NOTHING),
    "overlap": Reason("a part of it belongs to another pattern already", "nothing: that part is quantized"),
    "not-a-placeholder": Reason("the pattern asks for an input of the graph there", _NOTHING),
    "not-returned": Reason("the pattern asks for what the graph returns", _NOTHING),
}

_TENSORS: Final = {
    "weight-not-constant": Reason("its weight is computed, written to, or handed in", _CONSTANT),
    "bias-not-constant": Reason("its bias is computed, written to, or handed in", _CONSTANT),
    "bounds-not-constant": Reason("its bounds are not numbers", "clamp with Python numbers"),
    "weight-is-float64": Reason("quantize operators do not take a float64 weight", "export model.float()"),
    "activation-not-float32": Reason(
        "it reads another floating-point dtype than float32", "export the model in float32: model.float()"
    ),
    "activation-empty": Reason(
        "it reads a tensor without elements, which have no range to be found at run time",
        "nothing: there is nothing to compute",
    ),
    "activation-not-uint8": Reason(
        "its kernel reads uint8, and the activation is another dtype", _OWN_PRESET
    ),
    "activation-not-int8": Reason("its kernel reads int8, and the activation is another dtype", _OWN_PRESET),
    "activation-per-channel": Reason("its activation has a scale for each channel", _OWN_PRESET),
    "weight-not-int8-per-tensor": Reason(
        "its kernel takes int8 weights with one scale a tensor", _OWN_PRESET
    ),
    "weight-not-int8-per-output-channel": Reason(
        "its kernel takes int8 weights with one scale an output channel", _OWN_PRESET
    ),
    "weight-not-per-output-channel": Reason(
        "the scales of its weight are not along its outputs", _OWN_PRESET
    ),
    "weight-not-symmetric": Reason("its kernel takes weights whose zero point is 0", _OWN_PRESET),
    "weight-not-scaled-per-row": Reason("its kernel takes weights with one scale a row", _OWN_PRESET),
    "weight-not-quantized": Reason("its weight is float", "annotate the weight too"),
    "operand-not-quantized": Reason("one of its operands is float", "annotate all of its inputs"),
    "operands-broadcast": Reason("the tensors it adds differ in shape, or may at run time", _SHAPE),
    "shape-unknown": Reason("the graph does not say the shapes of its tensors", "export with torch.export"),
    "dynamic-shape": Reason(
        "a size of its result is only known when the model runs", "export without dynamic_shapes"
    ),
    "float-input": Reason(
        "it follows its inputs, and not all of them are in low precision",
        "quantize what makes the others, as far as their own reasons let you",
    ),
    "no-low-precision-reader": Reason(
        "nothing reads its result in low precision, so running it there would gain nothing",
        "quantize what reads it, as far as the reason of that lets you",
    ),
    "several-results": Reason("its results are handed on together, not one by one", _NOTHING),
    **{
        f"not-{count}-dimensional": Reason(f"its kernel takes tensors of {count} dimensions", _SHAPE)
        for count in range(1, 7)
    },
}

_KERNELS: Final = {
    "no-kernel": Reason(
        "it is quantized, and no kernel of the backend takes it as it stands here",
        "see the nearest miss in explain; the compiler runs it in float between quantize and dequantize",
    ),
    "no-int8-kernel": Reason("the backend has no int8 kernel of this operator", _NOTHING),
    "pointwise": Reason("it is pointwise; the compiler fuses it with what is around it, in float", _NOTHING),
    "two-activations": Reason(
        "both factors are activations; kernels take a constant as one of them", _NOTHING
    ),
    "other-backend": Reason(
        "another backend takes it",
        "compose the two quantizers: ComposableQuantizer([…])",
        in_command="name both backends, with a plus between them: --backend …+…",
    ),
    "recurrent": Reason("it is one operator of many steps, and has no int8 kernel", _NOTHING),
    "sum-read-in-float": Reason(
        "the kernel adds and quantizes, and the sum is read in float",
        "quantize what reads it, as far as the reason of that lets you",
    ),
    "accumulator-is-input": Reason(
        "the residual is its input as well: the kernel adds in place, and would overwrite what it reads",
        _NOTHING,
    ),
    "accumulator-dtype-differs": Reason(
        "what the kernel adds into is quantized to another dtype than the result",
        "quantize both to one dtype",
    ),
    "stays-float32": Reason(
        "it computes in the dtypes it was exported in", "nothing: bfloat16 is not for it"
    ),
}

_LAYOUT: Final = {
    "grouped-transposed-convolution": Reason(
        "channels of a transposed convolution of several groups cannot have scales of their own",
        "use one scale for its weight, or one group",
    ),
    "stride-exceeds-kernel": Reason(
        "the pooling leaves gaps: its stride is larger than its kernel", _NOTHING
    ),
    "not-the-mean-of-an-image": Reason("it is a mean over other axes than height and width, kept", _SHAPE),
    "concatenation-of-one-tensor": Reason("it joins one tensor, or one tensor with itself", _NOTHING),
    "strided-slice": Reason("the slice leaves elements out between those it takes", _NOTHING),
}

_BATCH_NORM: Final = {
    "batch-norm-not-folded": Reason(
        "the BatchNorm behind it cannot be folded into it", "see the reason of the BatchNorm itself"
    ),
    "batch-statistics": Reason(
        "the BatchNorm normalizes with the statistics of the batch",
        "export model.eval(), with track_running_stats=True",
    ),
    "statistics-read": Reason("another output of the BatchNorm than the normalized one is read", _ONE_READER),
    "not-after-convolution": Reason(
        "the BatchNorm stands behind no convolution or linear, so there is nothing to fold it into", _NOTHING
    ),
    "several-users": Reason("what the BatchNorm normalizes is read elsewhere too", _ONE_READER),
    "parameters-not-constant": Reason("a parameter or statistic of it is computed or written to", _CONSTANT),
    "channel-axis": Reason(
        "the channels of the BatchNorm are not those of the convolution or linear", _SHAPE
    ),
    "not-floating-point": Reason(
        "a tensor of it is complex or of integers, or its dtype changes", "use float32"
    ),
    "not-finite": Reason(
        "the folded weight or bias would overflow", "look for a variance of about 0 in the model"
    ),
    "not-aten-batch-norm": Reason(
        "the BatchNorm is an operator of an older export", "export with this torch"
    ),
    "quantized-parameter": Reason(
        "a parameter of the BatchNorm is annotated", "annotate the convolution instead"
    ),
    "mixed-dtypes": Reason(
        "the parameters of BatchNorm and convolution differ in dtype", "use one dtype for both"
    ),
    "quantized-between": Reason(
        "the tensor between convolution and BatchNorm is annotated",
        "annotate what the BatchNorm returns instead",
    ),
    "convolution-not-quantized": Reason(
        "the BatchNorm is folded into a convolution that stays float", "see the reason of the convolution"
    ),
}

_FORM: Final = {
    "asymmetric-same-padding": Reason(
        'padding="same" pads the two ends differently', "pad with F.pad, or use an odd kernel"
    ),
    "autocast-region": Reason("its operators compute in the dtypes that autocast chooses", _SPLIT),
    "grad-region-form": Reason("a no_grad region is not called the way torch.export does", _SPLIT),
    "nested-grad-region": Reason("a no_grad region turns gradients on or off inside", _SPLIT),
    "writes-external": Reason(
        "it writes in place into an input, a parameter or a buffer of the model",
        "write to a copy, or return the value",
    ),
    "in-place-only": Reason("it writes in place and has no functional form", _OUT_OF_PLACE),
    "in-place-alias": Reason("it writes in place into memory that others read", _OUT_OF_PLACE),
    "in-place-dtype": Reason("its functional form may give another dtype than it writes", _OUT_OF_PLACE),
    "written-in-place": Reason("it makes a view of, or writes into, memory that others read", _OUT_OF_PLACE),
}

_REFERENCE: Final = {
    "no-reference-rule": Reason("no rule of the reference representation is for it", _NOTHING),
    "result-read-in-float": Reason(
        "its result is not quantized, so integers alone cannot say it", "annotate its output"
    ),
    "scale-found-at-run-time": Reason(
        "its scale is not known before the model runs", "use static quantization"
    ),
    "accumulator-overflow": Reason("a sum of its products may not fit into 64 bits", "use fewer bits"),
    "bias-between-steps": Reason(
        "its bias is no whole number of accumulator steps", "nothing: it is added in float"
    ),
    "windows-differ": Reason("its windows are unequal, or known only when the model runs", _SHAPE),
    "scaled-addition": Reason("the sum is scaled: alpha is not 1", "multiply before adding"),
}

_reasons: Final[dict[str, Reason]] = {
    **_SELECTION,
    **_MATCHING,
    **_TENSORS,
    **_KERNELS,
    **_LAYOUT,
    **_BATCH_NORM,
    **_FORM,
    **_REFERENCE,
}

REASONS: Final[Mapping[str, Reason]] = MappingProxyType(_reasons)
"""By code."""


def register_reasons(reasons: Mapping[str, Reason]) -> None:
    """Add the codes of a backend to :data:`REASONS`; its package does so beside registering the backend.

    Raises:
        DuplicateReasonError: a code is there already, and means something else.
    """
    for code, reason in reasons.items():
        if REASONS.get(code, reason) != reason:
            raise DuplicateReasonError(
                f"the reason code {code!r} is there already, and means: {REASONS[code].meaning}",
                hint="give the code of the backend another name",
            )
    _reasons.update(reasons)
