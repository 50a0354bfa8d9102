"""The defects reproduced in the peer, with the faults that put them into lowbit and the laws that find these.

``make mutants`` seeds the faults. Where no law finds a defect, because it is not of graphs that the kit
generates, the table says why, and names the test that shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

__all__ = ["DEFECTS", "Defect"]


@attrs.frozen
class Defect:
    """One defect of the peer.

    Args:
        text: what is wrong.
        mutants: names of faults in the zoo, each with the law that finds it.
        tests: ``file::function`` below ``tests``, of the defect as it was reproduced.
        no_law: why no law finds it.
    """

    text: str
    mutants: Mapping[str, str] = attrs.field(factory=dict[str, str])
    tests: tuple[str, ...] = ()
    no_law: str = ""


_PEER: Final = "test_peer_defects.py::test_"
_QAT: Final = "test_qat_defects.py::test_"

DEFECTS: Final = (
    # Wrong numbers without an error.
    Defect(
        "BatchNorm folded into a convolution that has a second user",
        {
            "second user of a convolution": "meaning-kept",
            "second user of a convolution in training": "meaning-kept-in-evaluation",
        },
    ),
    Defect(
        "two BatchNorms over one shared convolution weight",
        {"two BatchNorms over one weight": "meaning-kept"},
    ),
    Defect(
        "eps reset to its default",
        {
            "eps of the default": "meaning-kept",
            "eps read as the default": "meaning-kept",
            "eps of the default in training": "meaning-kept-in-evaluation",
            "eps of the default after evaluation": "modes-return",
        },
    ),
    Defect("momentum reset to its default", {"momentum of the default in training": "modes-return"}),
    Defect(
        "Dropout(0.1) is Dropout(0.5) after eval and train",
        {"dropout of the default after evaluation": "modes-return"},
    ),
    Defect(
        "a BatchNorm in evaluation becomes one in training",
        {
            "a frozen BatchNorm trains": "modes-return",
            "a frozen BatchNorm trains after evaluation": "modes-return",
        },
    ),
    Defect("int32 + 2 becomes float32", {"integers become floats": "meaning-kept"}),
    Defect(
        "a model that never saw data is converted",
        {"converted without data": "refuses-to-convert-without-data"},
    ),
    Defect(
        "specs that differ in their observer only are merged",
        {"observers of other constructors merged": "one-observer-a-group"},
    ),
    Defect("float weights stay beside the int8 ones", {"float weights stay": "nothing-left-over"}),
    Defect(
        "the guard of train() and eval() is lost in a deep copy",
        {"train and eval forget to switch": "copies-are-alike"},
    ),
    # Crashes with a cryptic text.
    Defect(
        "a block that calls one ReLU twice",
        {"a module that is called twice": "no-crash"},
        (f"{_PEER}blocks_that_call_one_relu_twice",),
    ),
    Defect("an anchor that comes later", {"an anchor that comes later": "no-crash"}),
    Defect("an anchor that is not annotated", {"an anchor that is not annotated": "no-crash"}),
    Defect("anchors in a circle", {"anchors in a circle": "one-observer-a-group"}),
    Defect(
        "a chain of 1,500 shared points",
        tests=(f"{_PEER}a_long_chain_of_sharing",),
        no_law="graphs of the kit have a few operators, so that many can be tried",
    ),
    Defect("a node in kwargs", {"keyword arguments left as they are": "no-crash"}),
    Defect("training with gamma = 0", {"divided by a scale of zero": "meaning-kept"}),
    Defect("training with affine=False", {"a BatchNorm without gamma": "no-crash"}),
    Defect("training without running statistics", {"a BatchNorm without running statistics": "no-crash"}),
    Defect(
        "a convolution plus a scalar",
        {"a number where the pattern has a tensor": "no-crash"},
        (f"{_PEER}a_convolution_plus_a_scalar",),
    ),
    Defect(
        "a module that is called twice",
        {"a module that is called twice": "no-crash"},
        (f"{_PEER}modules_called_several_times",),
    ),
    Defect(
        "fixed parameters without a range",
        {"fixed parameters without a range": "no-crash"},
        (f"{_PEER}fixed_parameters_without_a_range",),
    ),
    Defect(
        "int64 * int64",
        {"integers are annotated": "annotations-accepted"},
        (f"{_PEER}products_of_integers",),
    ),
    Defect("NaN or inf in calibration data", {"data that are no numbers": "refuses-what-is-no-number"}),
    Defect(
        "models on several devices",
        tests=(f"{_PEER}models_on_several_devices",),
        no_law="laws run graphs, and there may be one device only to run them on",
    ),
    # Silently not quantized.
    Defect(
        "a forward without gradients",
        {"regions without gradients passed over": "regions-told"},
        (f"{_PEER}a_forward_without_gradients",),
    ),
    Defect(
        "branches of cond",
        tests=(f"{_PEER}the_branches_of_cond_are_quantized",),
        no_law="programs of the kit have no control flow; passes rewrite its bodies as they do other graphs",
    ),
    Defect(
        "conv1d, split and chunk on X86",
        {"conv1d passed over": "patterns-apply", "chunk passed over": "patterns-apply"},
        (f"{_PEER}what_the_peer_leaves_float_runs_in_low_precision",),
    ),
    Defect(
        "F.linear, F.conv2d and subclasses under non-strict export",
        {"only what strict export describes": "patterns-apply"},
        (f"{_PEER}strict_and_non_strict_export_quantize_the_same",),
    ),
    Defect(
        "matmul, topk, LSTM",
        {"what no pattern asks about is not told": "everything-decided"},
        (f"{_PEER}what_is_not_quantized_says_so",),
    ),
    Defect(
        "conv3d-bn, linear-bn and padding='same' in training",
        {
            "linear and BatchNorm in training passed over": "batch-norms-told",
            "padding in words and BatchNorm in training passed over": "batch-norms-told",
        },
        (f"{_QAT}what_is_fused_and_quantized",),
    ),
    Defect(
        "x + x can carry one spec only",
        {"the second of two equal inputs not observed": "one-observer-a-group"},
        (f"{_PEER}a_tensor_added_to_itself",),
    ),
    Defect(
        "annotated without a lowering: linear and leaky_relu, tanh",
        {"annotated without a kernel": "lowering-told"},
        (f"{_PEER}what_is_annotated_has_a_lowering",),
    ),
    Defect(
        "reference rewrites that never fire",
        {
            "the rule of conv2d never fires": "rules-fire",
            "the rule of max_pool2d never fires": "rules-fire",
            "the rule of linear never fires by channel": "rules-fire",
        },
    ),
)
"""All defects, in the order they were written down."""
