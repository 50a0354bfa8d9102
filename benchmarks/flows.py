"""The two flows that are compared: ours and torchao's, behind one shape and with equal observers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import click
import torch
from lowbit.backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    has_vnni,
)
from lowbit.ir.observers import MinMaxObserver
from lowbit.quantize_pt2e import convert_pt2e, prepare_pt2e
from torch import Tensor, nn
from torch.fx import GraphModule

# What both presets give their observers: the smallest scale.
EPS = 2**-12


@attrs.frozen
class Flow:
    """One way to quantize: how it exports a model, prepares it for X86, and converts it."""

    name: str
    export: Callable[[nn.Module, Tensor], GraphModule]
    prepare: Callable[[GraphModule], GraphModule]
    convert: Callable[[GraphModule], GraphModule]


def lowbit_flow(*, min_max: bool = False) -> Flow:
    """lowbit with the default static preset; its activations observed by min-max if asked for.

    On CPUs without VNNI both flows have activations of 7 bits, with which their kernels do not saturate.
    """
    config = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    if min_max:
        config = _with_activations(config, MinMaxObserver.with_args(eps=EPS), attrs.evolve)
    return Flow("lowbit", export, partial(_prepare, prepare_pt2e, X86InductorQuantizer, config), convert_pt2e)


def torchao_flow(*, min_max: bool = False) -> Flow:
    """The same of torchao.

    Raises:
        click.ClickException: torchao is not installed.
    """
    try:
        from torchao.quantization.pt2e import MinMaxObserver as PeerMinMaxObserver
        from torchao.quantization.pt2e import quantize_pt2e as peer
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as peer_x86
    except ImportError as error:
        raise click.ClickException(
            "torchao, which lowbit is compared with, is not installed here: run `make bench-env`, and then "
            "this script with .venv-bench/bin/python"
        ) from error
    config = peer_x86.get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    if min_max:
        config = _with_activations(config, PeerMinMaxObserver.with_args(eps=EPS), dataclasses.replace)
    prepare = partial(_prepare, peer.prepare_pt2e, peer_x86.X86InductorQuantizer, config)
    # Its X86 quantizer stops at modules that are called twice (the ReLU of a ResNet's block), unless the
    # export is strict.
    return Flow("torchao", partial(export, strict=True), prepare, peer.convert_pt2e)


def export(model: nn.Module, example: Tensor, *, strict: bool = False) -> GraphModule:
    """The graph of ``model``, as both flows begin with it."""
    return torch.export.export(model, (example,), strict=strict).module()


def _prepare(verb: Any, quantizer: Any, config: Any, exported: GraphModule) -> GraphModule:
    return verb(exported, quantizer().set_global(config))


def _with_activations(config: Any, observer: Any, replace: Callable[..., Any]) -> Any:
    """``config`` with another observer for activations. Both libraries name their fields alike."""
    return replace(
        config,
        input_activation=replace(config.input_activation, observer_or_fake_quant_ctr=observer),
        output_activation=replace(config.output_activation, observer_or_fake_quant_ctr=observer),
    )
