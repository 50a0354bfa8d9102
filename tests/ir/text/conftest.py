"""Random graphs at every stage, made directly, and what tests of the text form ask of a graph."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from random import Random

import pytest
import torch
from lowbit import Quantizer, convert_pt2e, lower_pt2e, prepare_pt2e
from lowbit.backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.meta import ANNOTATION_KEY
from lowbit.ir.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    disable_fake_quant,
    disable_observer,
)
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from lowbit.ir.text import parse, to_tensors, to_text
from lowbit.passes import PassContext, PassManager, Pipeline
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

aten = torch.ops.aten

UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
HISTOGRAM = QuantizationSpec(
    torch.uint8, HistogramObserver.with_args(eps=2**-12, bins=16, range_rule="min-max"), 0, 127
)
AVERAGE = QuantizationSpec(torch.int8, MovingAverageMinMaxObserver.with_args(averaging_constant=0.5))
FUSED = QuantizationSpec(
    torch.uint8,
    FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=2**-12),
    0,
    127,
)
FAKE = QuantizationSpec(torch.int8, FakeQuantize.with_args(observer=MinMaxObserver), -128, 127)
LEARNABLE = QuantizationSpec(torch.uint8, LearnableFakeQuantize, 0, 255)
FIXED = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0)


def derive(observers):
    """Scale of the product of two tensors."""
    (a, _), (w, _) = (observer.calculate_qparams() for observer in observers)
    return a * w, torch.zeros(1, dtype=torch.int32)


class AnyQuantizer(Quantizer):
    """Annotates at random, with ``specs``."""

    def __init__(self, random: Random, specs: tuple[QuantizationSpec, ...]) -> None:
        self.random = random
        self.specs = specs

    def annotate(self, model: GraphModule) -> GraphModule:
        annotated: list[Node] = []
        for node in model.graph.nodes:
            value = node.meta.get("val")
            if node.op != "call_function" or not isinstance(value, torch.Tensor):
                continue
            if value.dtype is not torch.float32 or self.random.random() < 0.3:
                continue
            set_annotation(node, self.annotation(node, annotated))
            if node.meta[ANNOTATION_KEY].output_qspec is not None:
                annotated.append(node)
        return model

    def annotation(self, node: Node, annotated: list[Node]) -> QuantizationAnnotation:
        choose = self.random.choice
        if node.target is aten.linear.default and self.random.random() < 0.7:
            x, weight, bias = node.args
            derived = DerivedQuantizationSpec([(x, node), (weight, node)], derive, torch.int32)
            specs = {x: choose(self.specs), weight: self.specs[0], bias: derived}
            return QuantizationAnnotation(specs, self.specs[0], _annotated=True)
        shared = [SharedQuantizationSpec(annotated[-1]), FIXED, None] if annotated else []
        output = choose([*self.specs, *shared])
        inputs = {
            source: choose([*self.specs, None])
            for source in node.all_input_nodes
            if isinstance(source.meta.get("val"), torch.Tensor) and self.random.random() < 0.4
        }
        return QuantizationAnnotation(
            inputs, output, allow_implicit_sharing=self.random.random() < 0.7, _annotated=True
        )

    def validate(self, model: GraphModule) -> None: ...


class Maker:
    """Makes a float graph of ``length`` operators or so on tensors of shape [2, 4]."""

    def __init__(self, random: Random, length: int) -> None:
        self.random = random
        self.root = nn.Module()
        self.graph = Graph()
        self.mode = FakeTensorMode()
        self.values: list[Node] = []
        self.names = itertools.count()
        self.generator = torch.Generator().manual_seed(random.randrange(1 << 30))
        for i in range(random.randint(1, 2)):
            self.values.append(self.record(self.graph.placeholder(f"x{i}"), torch.empty(2, 4)))
        for _ in range(length):
            random.choice(self.OPERATORS)(self)

    def record(self, node: Node, value: torch.Tensor) -> Node:
        node.meta["val"] = self.mode.from_tensor(value)
        return node

    def call(self, target: Callable[..., object], *args: object, **keywords: object) -> Node:
        node = self.graph.call_function(target, args, keywords)
        arguments = torch.fx.node.map_arg((args, keywords), lambda n: n.meta["val"])
        with self.mode:
            node.meta["val"] = target(*arguments[0], **arguments[1])
        if self.random.random() < 0.3:
            node.meta["nn_module_stack"] = {"L__self__": ("", nn.Sequential), "a": ("a.0", "made.Up")}
            line = self.random.randint(1, 3)
            node.meta["stack_trace"] = f'  File "model.py", line {line}, in forward\n    y = f("x")\n'
        if self.random.random() < 0.1:
            node.meta["mine"] = self.random.choice(
                [1, 2.5, "text\n", [None, (True,)], {"a": b"\0"}, object()]
            )
        return node

    def any(self) -> Node:
        return self.random.choice(self.values[-3:])

    def parameter(self, shape: tuple[int, ...]) -> Node:
        tensor = torch.randn(shape, generator=self.generator)
        name = f"p{next(self.names)}"
        known = [n for n, p in self.root.named_parameters(remove_duplicate=False) if p.shape == shape]
        kind = self.random.randrange(7)
        if kind == 0 and known:  # tied
            self.root.register_parameter(name, self.root.get_parameter(known[0]))
        elif kind == 1 and known:  # other memory format, same memory
            self.root.register_buffer(
                name, self.root.get_parameter(known[0]).detach().flatten()[: tensor.numel()].view(shape)
            )
        elif kind == 2 and len(shape) == 2:
            self.root.register_buffer(
                name, torch.randn(shape[::-1], generator=self.generator).t(), persistent=False
            )
        elif kind == 3:
            setattr(self.root, name, tensor)
        else:
            self.root.register_parameter(name, nn.Parameter(tensor, requires_grad=kind != 4))
        return self.record(self.graph.get_attr(name), getattr(self.root, name).detach())

    def linear(self) -> None:
        arguments = (self.any(), self.parameter((4, 4)), self.parameter((4,)))
        self.values.append(self.call(aten.linear.default, *arguments))

    def unary(self) -> None:
        target = self.random.choice([aten.relu.default, aten.neg.default, aten.sigmoid.default])
        self.values.append(self.call(target, self.any()))

    def clamp(self) -> None:
        low = self.random.choice([None, 0, -1.5, -float("inf")])
        self.values.append(
            self.call(aten.clamp.default, self.any(), low, self.random.choice([6.0, 2, float("inf")]))
        )

    def add(self) -> None:
        self.values.append(
            self.call(aten.add.Tensor, self.any(), self.any(), alpha=self.random.choice([1, 2, 0.5]))
        )

    def scalar(self) -> None:
        self.values.append(self.call(aten.mul.Scalar, self.any(), self.random.choice([-0.0, 1e-30, 3, 0.1])))

    def cat_and_split(self) -> None:
        joined = self.call(aten.cat.default, [self.any(), self.any()], 1)
        parts = self.call(aten.split.Tensor, joined, 4, 1)
        self.values.append(self.call(operator.getitem, parts, self.random.randint(0, 1)))

    def cast(self) -> None:
        half = self.call(aten.to.dtype, self.any(), torch.bfloat16)
        self.values.append(self.call(aten.to.dtype, half, torch.float32))

    def layout(self) -> None:
        made = self.call(aten.clone.default, self.any(), memory_format=torch.contiguous_format)
        turned = self.call(aten.permute.default, made, [1, 0])
        self.values.append(self.call(aten.permute.default, turned, [1, 0]))

    def constant(self) -> None:
        made = self.call(aten.full.default, [2, 4], 0.25, dtype=torch.float32, device=torch.device("cpu"))
        self.values.append(self.call(aten.add.Tensor, self.any(), made))

    OPERATORS = (linear, linear, unary, unary, clamp, add, scalar, cat_and_split, cast, layout, constant)

    def finish(self) -> GraphModule:
        outputs = self.random.choice(
            [lambda a, b: a, lambda a, b: (a,), lambda a, b: (a, [b, None]), lambda a, b: {"k": a, 1: (b,)}]
        )(self.values[-1], self.any())
        names = [n.name for n in self.graph.find_nodes(op="placeholder")]
        if self.random.random() < 0.7:
            flat, structure = pytree.tree_flatten(outputs)
            self.graph.output(tuple(flat))
            inputs = pytree.tree_structure((tuple(names), {}))
            self.graph.set_codegen(
                torch.fx.graph._PyTreeCodeGen(torch.fx.graph._PyTreeInfo(names, inputs, structure))
            )
        else:
            self.graph.output(outputs)
        return GraphModule(self.root, self.graph, class_name=self.random.choice(["GraphModule", "Model"]))


def inputs_of(gm: GraphModule) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, generator=generator) for _ in gm.graph.find_nodes(op="placeholder")]


def passes(gm: GraphModule, names: str, quantizer: Quantizer) -> GraphModule:
    return PassManager().run(gm, Pipeline.parse(names), PassContext(quantizer=quantizer))


def calibration_flow(random: Random, length: int) -> Iterator[tuple[str, GraphModule]]:
    """A random graph at every moment of post-training quantization, by name."""
    quantizer = AnyQuantizer(random, (UINT8, HISTOGRAM, AVERAGE))
    gm = Maker(random, length).finish()
    yield "float", gm
    for names in ("annotate", "resolve-sharing", "insert-observers"):
        gm = passes(gm, names, quantizer)
        yield names, gm
    with torch.no_grad():
        gm(*inputs_of(gm))
    yield "half calibrated", gm
    for names in ("observers-to-qdq", "duplicate-dequantize, fold-quantize, propagate-metadata"):
        gm = passes(gm, names, quantizer)
        yield names, gm


def training_flow(random: Random, length: int) -> Iterator[tuple[str, GraphModule]]:
    """A random graph with fake quantizers of all kinds, before and after it saw data."""
    quantizer = AnyQuantizer(random, (FUSED, FAKE, LEARNABLE, UINT8))
    gm = Maker(random, length).finish()
    gm = passes(gm, "annotate, resolve-sharing, insert-fake-quantizers", quantizer)
    yield "fake quantizers", gm
    gm(*inputs_of(gm))
    gm.apply(random.choice([disable_observer, disable_fake_quant]))
    yield "half trained", gm


def lowering_flow(random: Random, length: int) -> Iterator[tuple[str, GraphModule]]:
    """A random graph in kernels."""
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(Maker(random, length).finish(), X86InductorQuantizer().set_global(config))
    prepared(*inputs_of(prepared))
    yield "lowered", lower_pt2e(convert_pt2e(prepared), pack_weights=False)


FLOWS = {"calibration": calibration_flow, "training": training_flow, "lowering": lowering_flow}


def again(gm: GraphModule) -> GraphModule:
    """``gm``, written and read."""
    return parse(to_text(gm), to_tensors(gm))


@pytest.fixture(scope="session", name="flows")
def _flows() -> dict[str, Callable[[Random, int], Iterator[tuple[str, GraphModule]]]]:
    return FLOWS


@pytest.fixture(scope="session", name="inputs_of")
def _inputs_of() -> Callable[[GraphModule], list[torch.Tensor]]:
    return inputs_of


@pytest.fixture(scope="session", name="again")
def _again() -> Callable[[GraphModule], GraphModule]:
    return again
