"""The metadata keys that lowbit owns: what is under each, and who writes it.

``node.meta`` and ``gm.meta`` are shared with torch and with whoever else works on a graph; what lowbit keeps
there, it keeps under these names. Everything under them is plain data or refers to nodes of its own graph
only, so that a graph can be copied and written down as text.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANNOTATION_KEY",
    "BACKEND_CONFIG_KEY",
    "BACKEND_KEY",
    "BLOCK_KEY",
    "BODY_KEY",
    "GROUPS_KEY",
    "ID_KEY",
    "KERNEL_KEY",
    "LEDGER_KEY",
    "NEXT_ID_KEY",
    "ORIGIN_KEY",
    "PACK_KEY",
    "PART_KEY",
    "QAT_KEY",
    "REFERENCE_KEY",
    "STAGE_KEY",
    "TRAINING_KEY",
]

# Of nodes.

ANNOTATION_KEY: Final = "quantization_annotation"
"""``QuantizationAnnotation``; written by quantizers, gone after conversion. The name is PyTorch's."""
GROUPS_KEY: Final = "lowbit.groups"
"""``str``, the sharing groups of the node's points; written by ``resolve-sharing``, gone after conversion."""
KERNEL_KEY: Final = "lowbit.kernel"
"""``str``, the operator pattern and kernel that a lowered node stands for; written by ``emit-inductor``,
and by passes that put another kernel in its place."""
PACK_KEY: Final = "lowbit.pack"
"""``True`` on the calls that pack a weight, their first argument; written by kernels, read by
``pack-weights``."""
REFERENCE_KEY: Final = "lowbit.reference"
"""``str``, of nodes of the reference representation: ``"quantize"`` and ``"dequantize"`` on what these were
written out as, ``"float: reason"`` on operators between them that stay float; written by
``reference-representation``, read by its stage's verifier."""
STANDS_FOR_KEY: Final = "lowbit.stands_for"
"""``str``, the name of the node whose value this one computes in its place, of a graph as it was before;
written by passes that rewrite whole regions, read by numeric verification."""
ID_KEY: Final = "lowbit.id"
"""``int``, who the node is, whatever it is called and wherever it stands; written by the pass manager
(:mod:`lowbit.ir.provenance`)."""
ORIGIN_KEY: Final = "lowbit.origin"
"""``(pass name, id or None)``: the pass that made the node and the node it was made from; written by the pass
manager, absent on nodes that the pipeline was handed."""
BLOCK_KEY: Final = "lowbit.conv_bn"
"""``Block``, on the BatchNorm of a convolution → BatchNorm block in training, on its convolution in
evaluation; written by ``fuse-conv-bn-qat``, gone after conversion."""
PART_KEY: Final = "lowbit.conv_bn_part"
"""``str``, of the nodes that compute a block's weight and bias: which part they compute; likewise."""
TRAINING_KEY: Final = "lowbit.in_training"
"""The argument that a call had in training, while the graph is in evaluation; written by
:mod:`lowbit.ir.train_eval`."""

# Of graph modules.

STAGE_KEY: Final = "lowbit.stage"
"""``Stage``; written by the pass manager."""
BACKEND_KEY: Final = "lowbit.backend"
"""``str``, the name of the backend whose quantizer prepared the model; written by ``prepare_pt2e``."""
BACKEND_CONFIG_KEY: Final = "lowbit.backend_config"
"""``str``, the name of the BackendConfig that the model was prepared with; written by ``prepare_fx``."""
LEDGER_KEY: Final = "lowbit.ledger"
"""``Ledger``, the decisions so far; written by the verbs."""
QAT_KEY: Final = "lowbit.qat"
"""``True`` on graphs prepared for training; written by ``insert-fake-quantizers``, gone after conversion."""
BODY_KEY: Final = "lowbit.body"
"""``True`` on bodies of ``cond`` and the like that passes go into, ``False`` on what stands beside them;
written by the pass manager while it runs (:mod:`lowbit.ir.bodies`)."""
NEXT_ID_KEY: Final = "lowbit.next_id"
"""``int``, the id that the next new node gets; written by the pass manager."""
