"""The mutation zoo: faults to be seeded in passes and rules, each one change of the text of one function.

``make mutants`` seeds one after the other and runs the laws that are to notice. A fault is what one writes
when tired: a guard dropped, an axis off by one, inputs swapped, a constant of the default where the call has
its own.
"""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["ZOO", "Mutant"]


@attrs.frozen
class Mutant:
    """One fault.

    Args:
        name: what is wrong, in words.
        function: ``module:qualified.name`` of the function it is in, below ``lowbit``.
        old: text that occurs once in its source.
        new: what stands there instead.
        passes: the passes whose laws are to notice.
        also: further changes (function, old, new), where two guards are in the way of one fault.
        quantizer: the backend whose quantizer annotates; annotations are drawn if there is none.
        stage: of the graphs, for a pass that runs at several.
    """

    name: str
    function: str
    old: str
    new: str
    passes: tuple[str, ...]
    also: tuple[tuple[str, str, str], ...] = ()
    quantizer: str = ""
    stage: str = ""


FBN = "passes.fold_batch_norm:_Folder"
QDQ = "passes.observers_to_qdq:"
REF = "passes.reference."
FOLD = ("fold-batch-norm",)
NORMALIZE = ("normalize",)
INSERT = ("insert-observers",)
CONVERT = ("observers-to-qdq",)
REFERENCE = ("reference-representation",)
EMIT = ("emit-inductor",)
FUSE = ("fuse-conv-bn-qat",)
BF16 = ("propagate-bf16",)
ANNOTATE = ("annotate",)
ANNOTATOR = "backends.annotation:"
FAKE = ("fuse-conv-bn-qat", "insert-fake-quantizers")

ZOO: Final = (
    # fold-batch-norm
    Mutant("eps dropped", f"{FBN}._folded", " + norm.eps", "", FOLD),
    Mutant("eps of the default", f"{FBN}._folded", "norm.eps", "1e-5", FOLD),
    Mutant("gamma forgotten", f"{FBN}._folded", "scale = scale * read(norm.weight).double()", "pass", FOLD),
    Mutant("mean added", f"{FBN}._folded", "shift = -read(norm.mean)", "shift = read(norm.mean)", FOLD),
    Mutant("bias forgotten", f"{FBN}._folded", "shift = shift + read(bias_node).double()", "pass", FOLD),
    Mutant("bias not scaled", f"{FBN}._folded", "shift = shift * scale", "pass", FOLD),
    Mutant("beta subtracted", f"{FBN}._folded", "shift + read(norm.bias)", "shift - read(norm.bias)", FOLD),
    Mutant("variance for deviation", f"{FBN}._folded", "torch.rsqrt(", "torch.reciprocal(", FOLD),
    Mutant(
        "channels of the wrong axis",
        "passes.fold_batch_norm:_scale_channels",
        "scale.reshape(-1, *(1,) * (weight.ndim - 1))",
        "scale.reshape(-1, *(1,) * (weight.ndim - 1)).transpose(0, 1)",
        FOLD,
    ),
    Mutant(
        "folded bias not written",
        f"{FBN}._rewrite",
        'producer.update_arg(index["bias"], new_bias)',
        "pass",
        FOLD,
    ),
    Mutant(
        "folded weight not written",
        f"{FBN}._rewrite",
        'producer.update_arg(index["weight"], new_weight)',
        "pass",
        FOLD,
    ),
    Mutant("two BatchNorms over one weight", f"{FBN}._place", "self.reads[target] == 1", "True", FOLD),
    Mutant("stale value of a new bias", f"{FBN}._read", "shaped.meta.get", "like.meta.get", FOLD),
    Mutant(
        "folded weights left behind",
        "passes.fold_batch_norm:fold_batch_norms",
        "delete_unused(gm)",
        "pass",
        FOLD,
    ),
    Mutant(
        "second user of a convolution",
        "ir.batch_norm:producer_layout",
        "len(producer.users) != 1",
        "False",
        FOLD,
    ),
    Mutant(
        "channels on the last axis",
        "ir.batch_norm:producer_layout",
        "value.ndim != shape.ndim",
        "False",
        FOLD,
    ),
    Mutant(
        "eps read as the default",
        "ir.batch_norm:read_norm",
        'argument(call, "eps" if "eps" in positional else "epsilon")',
        "1e-5",
        FOLD,
    ),
    Mutant(
        "beta read as gamma",
        "ir.batch_norm:read_norm",
        'argument(call, "bias")',
        'argument(call, "weight")',
        FOLD,
    ),
    Mutant(
        "mean and variance swapped",
        "ir.batch_norm:read_norm",
        'mean=cast("Node", mean)',
        'mean=cast("Node", var)',
        FOLD,
    ),
    # normalize
    Mutant(
        "same padding twice as wide",
        "passes.normalize:_padding_numbers",
        "[t // 2 for t in total]",
        "total",
        NORMALIZE,
    ),
    Mutant("same padding off by one", "passes.normalize:_padding_numbers", "(k - 1)", "k", NORMALIZE),
    Mutant(
        "asymmetric padding halved",
        "passes.normalize:_padding_numbers",
        "any(t % 2 for t in total)",
        "False",
        NORMALIZE,
    ),
    Mutant(
        "reads of all attributes merged",
        "passes.normalize:_merge_attribute_reads",
        "first.setdefault(node.target, node)",
        "first.setdefault('', node)",
        NORMALIZE,
    ),
    Mutant(
        "alias read after a write",
        "passes.functional_form:_Sweep._objection",
        "> position",
        "> position + 999",
        NORMALIZE,
    ),
    Mutant(
        "readers not led to the new value",
        "passes.functional_form:_Sweep._reroute",
        "if now is not source",
        "if False",
        NORMALIZE,
    ),
    Mutant(
        "the last write forgotten",
        "passes.functional_form:_Sweep._visit",
        "assert form is not None",
        "tensor = node",
        NORMALIZE,
    ),
    Mutant(
        "a change concealed",
        "passes.normalize:_normalize",
        "changed = _erase_unread(graph, context) or changed",
        "_erase_unread(graph, context)",
        NORMALIZE,
    ),
    Mutant(
        "a change of attributes concealed",
        "passes.normalize:_normalize",
        "changed |= _merge_attribute_reads(graph, context)",
        "_merge_attribute_reads(graph, context)",
        NORMALIZE,
    ),
    Mutant(
        "unread attributes stay", "passes.normalize:Normalize.run", "delete_unused(gm)", "pass", NORMALIZE
    ),
    Mutant(
        "integers become floats",
        "passes.normalize:_normalize",
        "changed |= _erase_unread(graph, context)",
        "[n.update_arg(1, float(n.args[1])) for n in graph.nodes "
        "if n.target is _aten.add.Tensor and type(n.args[1]) is int]; "
        "changed |= _erase_unread(graph, context)",
        NORMALIZE,
    ),
    Mutant(
        "keyword arguments left as they are",
        "passes.normalize:_normalize",
        "changed |= complete_arguments(node)",
        "pass",
        ("fold-batch-norm", "annotate"),
    ),
    # sharing and observers
    Mutant(
        "an anchor that comes later",
        "ir.sharing.explicit:follow_anchors",
        "anchors[i] = index[spec.edge_or_node]",
        "anchors[i] = {p: k for p, k in index.items() if k <= i}[spec.edge_or_node]",
        ("resolve-sharing",),
    ),
    Mutant(
        "an anchor that is not annotated",
        "ir.sharing.explicit:follow_anchors",
        "if fault is None:",
        "if True:",
        ("resolve-sharing",),
    ),
    Mutant(
        "anchors in a circle",
        "ir.sharing.resolve:resolve_sharing",
        "*explicit.problems, ",
        "",
        INSERT,
    ),
    Mutant(
        "data that are no numbers",
        "ir.observers.extremes:finite_min_max",
        "if not (high / 2 - low / 2 < torch.inf).all():",
        "if False:",
        INSERT,
    ),
    Mutant(
        "observers of other constructors merged",
        "ir.specs:spec_key",
        "fields.values()",
        '({**fields, "observer_or_fake_quant_ctr": None}).values()',
        INSERT,
    ),
    Mutant(
        "other dtypes share",
        "ir.specs:spec_key",
        "fields.values()",
        '({**fields, "dtype": None, "quant_min": None, "quant_max": None, "qscheme": None}).values()',
        INSERT,
    ),
    Mutant(
        "other tensors share",
        "ir.sharing.implicit:implicit_pairs",
        "(tensor_of(point), keys[id(spec)])",
        "(0, keys[id(spec)])",
        INSERT,
    ),
    Mutant(
        "edges not observed",
        "passes.insert_observers:_Insertion._chain",
        ", self.sharing.group_of((producer, reader)))",
        ",)",
        INSERT,
    ),
    Mutant(
        "outputs observed by edges alone",
        "passes.insert_observers:_Insertion._chain",
        "(self.sharing.group_of(producer), self.sharing.group_of((producer, reader)))",
        "(self.sharing.group_of((producer, reader)), self.sharing.group_of(producer))",
        INSERT,
    ),
    Mutant(
        "only the first reader observed",
        "passes.insert_observers:_Insertion.run",
        "list(producer.users)",
        "list(producer.users)[:1]",
        INSERT,
    ),
    # observers-to-qdq
    Mutant(
        "zero point dropped",
        f"{QDQ}_quantize_and_dequantize",
        "(float(scale), int(zero_point))",
        "(float(scale), quant_min)",
        CONVERT,
    ),
    Mutant(
        "scale rounded",
        f"{QDQ}_quantize_and_dequantize",
        "(float(scale), int(zero_point))",
        "(round(float(scale), 4) or 1e-4, int(zero_point))",
        CONVERT,
    ),
    Mutant(
        "axis off by one",
        f"{QDQ}_quantize_and_dequantize",
        "observer.ch_axis)",
        "observer.ch_axis + 1)",
        CONVERT,
    ),
    Mutant(
        "largest integer left out",
        f"{QDQ}_quantize_and_dequantize",
        "(*qparams, quant_min, quant_max, dtype)",
        "(*qparams, quant_min, quant_max - 1, dtype)",
        CONVERT,
    ),
    Mutant(
        "dynamic eps of one",
        f"{QDQ}_quantize_and_dequantize",
        'float(getattr(observer, "eps", torch.finfo(torch.float32).eps))',
        "1.0",
        CONVERT,
    ),
    Mutant(
        "dynamic always symmetric",
        f"{QDQ}_quantize_and_dequantize",
        "observer.qscheme == torch.per_tensor_symmetric",
        "True",
        CONVERT,
    ),
    Mutant(
        "scale for zero point",
        f"{QDQ}_register_qparams",
        '(("scale", scale), ("zero_point", zero_point))',
        '(("scale", zero_point), ("zero_point", scale))',
        CONVERT,
    ),
    Mutant("an observer left", f"{QDQ}ObserversToQdq.run", "gm.graph.erase_node(node)", "pass", CONVERT),
    Mutant(
        "converted without data",
        f"{QDQ}_check_calibrated",
        "if unseen:",
        "if False:",
        CONVERT,
        also=(
            (
                "ir.observers.statistic:StatisticObserver.calculate_qparams",
                "if not self.has_data:",
                "if not self.has_data:\n        return torch.ones(1), torch.zeros(1, dtype=torch.int32)\n"
                "    if False:",
            ),
        ),
    ),
    Mutant(
        "quantized parameters of no one stay",
        f"{QDQ}ObserversToQdq.run",
        "delete_unused(gm)",
        "pass",
        CONVERT,
    ),
    # duplicate-dequantize, fold-quantize, propagate-metadata
    Mutant(
        "says changed",
        "passes.duplicate_dequantize:DuplicateDequantize.run",
        "return bool(own)",
        "return True",
        ("duplicate-dequantize",),
    ),
    Mutant(
        "says unchanged",
        "passes.fold_quantize:FoldQuantize.run",
        "return bool(folded)",
        "return False",
        ("fold-quantize",),
    ),
    Mutant(
        "float weights stay",
        "passes.fold_quantize:FoldQuantize.run",
        "delete_unused(gm)",
        "pass",
        ("fold-quantize",),
    ),
    Mutant(
        "folded weight says it is float",
        "passes.fold_quantize:_fold",
        "dict(node.meta)",
        "dict(source.meta)",
        ("fold-quantize",),
    ),
    Mutant(
        "folded over the float weight",
        "passes.fold_quantize:_fold",
        "names.fresh(",
        "str(source.target) if source else str(",
        ("fold-quantize",),
    ),
    Mutant(
        "quantized value said to be float",
        "passes.propagate_metadata:_Values.complete",
        "self._like(source, _argument_dtype(node))",
        "self._like(source, torch.float32)",
        ("propagate-metadata",),
    ),
    Mutant(
        "value of another shape",
        "passes.propagate_metadata:_Values._fake",
        "key = (shape, stride, source.device, dtype)",
        "key = (len(shape), source.device, dtype)",
        ("propagate-metadata",),
    ),
    # reference-representation
    Mutant(
        "the rule of conv2d never fires",
        f"{REF}representation:_Rewriting.apply",
        "if not self.done",
        'if rule.name == "conv2d" or not self.done',
        REFERENCE,
    ),
    Mutant(
        "the rule of max_pool2d never fires",
        f"{REF}representation:_Rewriting.apply",
        "if not self.done",
        'if rule.name == "max_pool2d" or not self.done',
        REFERENCE,
    ),
    Mutant(
        "the rule of linear never fires by channel",
        f"{REF}representation:_Rewriting.apply",
        "if not self.done",
        'if (rule.name == "linear" and "per_channel" in str(found.tensors)) or not self.done',
        REFERENCE,
    ),
    Mutant(
        "wrong lower bound", f"{REF}arithmetic:requantize", "output.quant_min, output", "0, output", REFERENCE
    ),
    Mutant(
        "output's zero point dropped",
        f"{REF}arithmetic:requantize",
        "if output.zero_point:",
        "if False:",
        REFERENCE,
    ),
    Mutant(
        "input's zero point dropped",
        f"{REF}arithmetic:centered",
        "elif not zero_point:",
        "elif True:",
        REFERENCE,
    ),
    Mutant("relu dropped", f"{REF}operands:narrowed", "quant_min=low, ", "", REFERENCE),
    Mutant(
        "upper bound of a clamp dropped",
        f"{REF}operands:bounds_of",
        "math.inf if high is None else float(high)",
        "math.inf",
        REFERENCE,
    ),
    Mutant(
        "users == 1 guard dropped",
        f"{REF}operands:find_tail",
        "len(node.users) == 1",
        "node.users",
        REFERENCE,
    ),
    Mutant("groups dropped", f"{REF}weighted:_products", 'argument(operator, "groups")', "1", REFERENCE),
    Mutant(
        "stride and padding swapped",
        f"{REF}weighted:_products",
        '("stride", "padding", "dilation")',
        '("padding", "stride", "dilation")',
        REFERENCE,
    ),
    Mutant(
        "scales of other channels",
        f"{REF}weighted:_accumulator",
        "_over_channels(channels, dimensions)",
        "_over_channels(channels.flip(0), dimensions)",
        REFERENCE,
    ),
    Mutant(
        "bias in steps of nothing",
        f"{REF}weighted:_accumulator",
        "_over_channels(bias, dimensions) / scale",
        "_over_channels(bias, dimensions)",
        REFERENCE,
    ),
    Mutant(
        "bias in float forgotten",
        f"{REF}weighted:_in_float",
        "if isinstance(bias, Node):",
        "if False:",
        REFERENCE,
    ),
    Mutant(
        "product with one scale", f"{REF}elementwise:Product.emit", "x.scale * y.scale", "x.scale", REFERENCE
    ),
    Mutant("sum with one scale", f"{REF}elementwise:Sum.emit", "o.scale)", "operands[0].scale)", REFERENCE),
    Mutant(
        "sum of a window not divided", f"{REF}pooling:Average.emit", "x.scale / counts", "x.scale", REFERENCE
    ),
    Mutant(
        "stride of a pooling dropped",
        f"{REF}pooling:Maximum.emit",
        "operator.args[1:]",
        "operator.args[1:2]",
        REFERENCE,
    ),
    Mutant(
        "moved with other parameters",
        f"{REF}movement:Movement._brought",
        "if has_parameters and",
        "if True or has_parameters and",
        REFERENCE,
    ),
    Mutant(
        "written out without zero point",
        f"{REF}write_out:write_quantize",
        "zero_point is not None and zero_point != 0",
        "False",
        REFERENCE,
    ),
    Mutant(
        "dynamic scalar becomes float64",
        f"{REF}write_out:write_dequantize",
        "graph.call_function(_aten.to.dtype, (value, out_dtype)) if isinstance(scale, Node) else value",
        "value",
        REFERENCE,
    ),
    # quantization-aware training
    Mutant(
        "second user of a convolution in training",
        "ir.batch_norm:producer_layout",
        "len(producer.users) != 1",
        "False",
        ("fuse-conv-bn-qat",),
    ),
    Mutant(
        "eps of the default in training",
        "ir.batch_norm:read_norm",
        'argument(call, "eps" if "eps" in positional else "epsilon")',
        "1e-5",
        ("fuse-conv-bn-qat",),
    ),
    Mutant(
        "annotations of a block lost",
        "passes.qat.fuse_conv_bn:_fuse",
        "specs.pop(bias, None) if bias is not None else None",
        "specs.clear()",
        ("fuse-conv-bn-qat",),
    ),
    Mutant(
        "a scalar gets a dimension",
        "ir.observers.fake_quantization:_along_channels",
        "qparam.view(())",
        "qparam",
        ("insert-fake-quantizers",),
    ),
    Mutant(
        "BatchNorm stays in training",
        "passes.qat.fold_conv_bn:FoldConvBnQat.run",
        "switch_to_evaluation(gm)",
        "pass",
        ("fold-conv-bn-qat",),
    ),
    Mutant(
        "momentum of the default in training",
        "ir.conv_bn_writer:BlockWriter.batch_norm",
        "block.momentum",
        "0.1",
        FAKE,
    ),
    Mutant(
        "eps of the default after evaluation",
        "ir.conv_bn_writer:BlockWriter.batch_norm",
        "block.eps",
        "1e-5",
        FAKE,
    ),
    Mutant(
        "dropout of the default after evaluation",
        "ir.train_eval:_Switch.set",
        "self.node.update_arg(index, value)",
        "self.node.update_arg(index, value); self.node.target in DROPOUTS and self.node.update_arg(1, 0.5)",
        FAKE,
    ),
    Mutant(
        "a frozen BatchNorm trains",
        "ir.conv_bn:enter_evaluation",
        'training=argument(norm, "training") is not False',
        "training=True",
        FAKE,
    ),
    Mutant(
        "a frozen BatchNorm trains after evaluation",
        "ir.train_eval:to_training",
        "switch.on if throughout else None",
        "switch.on",
        FAKE,
    ),
    Mutant(
        "divided by a scale of zero",
        "ir.conv_bn_writer:BlockWriter.unscaled_weight",
        "(off, weight, unscaled)",
        "(off, unscaled, unscaled)",
        FUSE,
    ),
    Mutant(
        "a BatchNorm without gamma",
        "ir.conv_bn_writer:BlockWriter.scale",
        "if block.gamma is not None:",
        "if True:",
        FUSE,
    ),
    Mutant(
        "a BatchNorm without running statistics",
        "ir.batch_norm:read_norm",
        "if mean is None or var is None:",
        "if False:",
        FUSE,
    ),
    # the graph as a module
    Mutant(
        "train and eval forget to switch",
        "ir.clone:clone_graph_module",
        "copies, ExportedGraphModule)",
        "copies, GraphModule)",
        NORMALIZE,
    ),
    # lowering
    Mutant(
        "kernel without zero point",
        "backends.x86_inductor.requantize:output_arguments",
        "output.scale, output.zero_point",
        "output.scale, 0",
        EMIT,
    ),
    Mutant(
        "kernel without groups",
        "backends.x86_inductor.convolution:conv_arguments",
        'argument(conv, "groups")',
        "1",
        EMIT,
    ),
    Mutant(
        "kernel without bias",
        "backends.x86_inductor.convolution:conv_arguments",
        "bias_parameter(call)",
        "None",
        EMIT,
    ),
    # quantizers of backends
    Mutant(
        "a module that is called twice",
        f"{ANNOTATOR}_annotate_compute",
        "if anchor in state.claimed:",
        "assert all(len(n.users) == 1 for n in anchor.all_input_nodes if n.op == 'get_attr')\n"
        "        if anchor in state.claimed:",
        ANNOTATE,
        quantizer="x86_inductor",
    ),
    Mutant(
        "conv1d passed over",
        f"{ANNOTATOR}_annotate_compute",
        "if anchor in state.claimed:",
        "if anchor in state.claimed or 'conv1d' in anchor.name:",
        ANNOTATE,
        quantizer="x86_inductor",
    ),
    Mutant(
        "chunk passed over",
        f"{ANNOTATOR}_annotate_followers",
        "node not in state.claimed",
        "not isinstance(node.meta['val'], (list, tuple))",
        ANNOTATE,
        quantizer="x86_inductor",
    ),
    Mutant(
        "only what strict export describes",
        f"{ANNOTATOR}_annotate_compute",
        "if anchor in state.claimed:",
        "if anchor in state.claimed or 'source_fn_stack' not in anchor.meta:",
        ANNOTATE,
        quantizer="x86_inductor",
    ),
    Mutant(
        "a number where the pattern has a tensor",
        "matchers.search:Search._bind",
        'return _miss("not-a-node", goal, f"is {found!r}, where the pattern has a tensor")',
        "raise AttributeError(f'{type(found)} has no meta')",
        ANNOTATE,
        quantizer="x86_inductor",
    ),
    Mutant(
        "integers are annotated",
        "backends.guards:_value",
        "isinstance(value, torch.Tensor)",
        "isinstance(value, torch.Tensor) and value.is_floating_point()",
        ANNOTATE,
        quantizer="xnnpack",
    ),
    Mutant(
        "what no pattern asks about is not told",
        f"{ANNOTATOR}_explain_rest",
        "state.ledger.missed(why.reason, node, why.detail)",
        "pass",
        ANNOTATE,
        quantizer="x86_inductor",
    ),
    Mutant(
        "fixed parameters without a range",
        "ir.observers.factory:create_observer",
        "if isinstance(spec, FixedQParamsQuantizationSpec):",
        "if isinstance(spec, FixedQParamsQuantizationSpec):\n"
        "        assert spec.quant_min is not None and spec.quant_max is not None",
        INSERT,
    ),
    Mutant(
        "the second of two equal inputs not observed",
        "ir.inputs:replace_inputs",
        "def value(source: Node) -> Node:",
        "seen = []\n\n    def value(source: Node) -> Node:\n        if source in seen:\n"
        "            return source\n        seen.append(source)",
        INSERT,
    ),
    Mutant(
        "regions without gradients passed over",
        "passes.inline_regions:inline_grad_regions",
        "if not todo:",
        "if True:",
        NORMALIZE,
    ),
    Mutant(
        "linear and BatchNorm in training passed over",
        "ir.batch_norm:producer_layout",
        "if target in PRODUCERS",
        "if target in PRODUCERS and target is not _aten.linear.default",
        FUSE,
    ),
    Mutant(
        "padding in words and BatchNorm in training passed over",
        "ir.batch_norm:producer_layout",
        "if target in PRODUCERS",
        "if target in PRODUCERS and 'padding' not in str(target)",
        FUSE,
    ),
    Mutant(
        "BatchNorm not folded without a word",
        f"{FBN}.fold",
        "self.context.ledger.missed(verdict.reason, call, verdict.detail)",
        "pass",
        FOLD,
    ),
    # bfloat16
    Mutant(
        "one operator too many in bfloat16",
        "passes.bf16_plan:_rule",
        "if name in COMPUTE_IN_BFLOAT16 and",
        "if (name in COMPUTE_IN_BFLOAT16 or name == 'softmax') and",
        BF16,
    ),
    Mutant(
        "what stays float32 computes in bfloat16",
        "passes.bf16_plan:_rule",
        "return Rule.FLOAT32",
        "return Rule.AS_GIVEN",
        BF16,
    ),
    Mutant(
        "constants rounded twice",
        "passes.bf16_casts:_saturated",
        "cast = tensor.to(dtype)",
        "cast = tensor.to(torch.float16).to(dtype)",
        BF16,
    ),
    Mutant(
        "constants cut off",
        "passes.bf16_casts:_saturated",
        "cast = tensor.to(dtype)",
        "cast = (tensor.contiguous().view(torch.int32) & -65536).view(torch.float32).to(dtype)",
        BF16,
    ),
    Mutant(
        "constants in eight bits",
        "passes.bf16_casts:_saturated",
        "cast = tensor.to(dtype)",
        "cast = tensor.to(torch.float8_e5m2).to(dtype)",
        BF16,
    ),
    Mutant(
        "results left in bfloat16",
        "passes.propagate_bf16:_Propagation.run",
        'node.op == "output" and keep_output_dtype',
        "False",
        BF16,
    ),
    Mutant(
        "one cast for all tensors",
        "passes.bf16_casts:Casts.cast",
        "self._once(source, source, dtype, lambda",
        "self._once(source, '', dtype, lambda",
        BF16,
    ),
    Mutant(
        "one dequantize for all tensors",
        "passes.bf16_casts:Casts.cast",
        "self._once(source, source, dtype, self._dequantize)",
        "self._once(source, '', dtype, self._dequantize)",
        BF16,
        quantizer="x86_inductor",
        stage="QDQ",
    ),
    # more of the reference representation
    Mutant(
        "inputs of a sum swapped",
        f"{REF}elementwise:Sum.emit",
        "(centered(call, o), o.scale) for o in operands",
        "(centered(call, o), p.scale) for o, p in zip(operands, reversed(operands))",
        REFERENCE,
    ),
    Mutant(
        "integers of a join swapped",
        f"{REF}movement:Movement.emit",
        "moved.get(node, node)",
        "list(moved.values())[-1] if node in moved else node",
        REFERENCE,
    ),
    Mutant(
        "zero point found at run time dropped",
        f"{REF}arithmetic:centered",
        "return call.graph.call_function(_aten.sub.Tensor, (wide, zero_point))",
        "return wide if isinstance(zero_point, Node) else "
        "call.graph.call_function(_aten.sub.Tensor, (wide, zero_point))",
        REFERENCE,
    ),
    Mutant(
        "scale found at run time dropped",
        f"{REF}weighted:_accumulator",
        "factor=x.scale if found_at_run_time else None",
        "factor=None",
        REFERENCE,
    ),
    # more of lowering
    Mutant(
        "annotated without a kernel",
        "passes.emit_inductor:EmitInductor.run",
        "return context.allows(pattern.name, call.nodes[0])",
        "return 'tanh' not in pattern.name",
        EMIT,
        quantizer="x86_inductor",
    ),
    Mutant(
        "a kernel that is not told of",
        "passes.emit_inductor:EmitInductor.run",
        "runs_at=node.name,",
        "runs_at='',",
        EMIT,
    ),
)
"""All faults."""
