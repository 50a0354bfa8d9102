"""``prepare_fx``, ``prepare_qat_fx`` and ``convert_fx``: the handbook's verbs, for modules.

They export the module and run the pipelines of the backend that a BackendConfig and a QConfigMapping
describe. Names and arguments are those of PyTorch's FX graph mode quantization.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from .backends.backend_config import (
    BackendConfig,
    QConfigMapping,
    compile_backend,
    get_native_backend_config,
)
from .errors import DeviceError, GraphInputError, LowbitError, SpecError, UnknownNameError
from .ir.meta import BACKEND_CONFIG_KEY
from .passes.instruments import Instrument
from .quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e

__all__ = ["convert_fx", "prepare_fx", "prepare_qat_fx"]


def prepare_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Mapping[str, Any],
    example_inputs: tuple[Any, ...],
    *,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    instruments: Sequence[Instrument] = (),
    strict: bool = False,
) -> GraphModule:
    """Export ``model`` and insert observers, for post-training quantization.

    ::

        prepared = prepare_fx(model.eval(), get_default_qconfig_mapping(), example_inputs)
        calibrate(prepared, loader)
        converted = convert_fx(prepared)

    Args:
        model: a module in eval mode. It is not changed.
        qconfig_mapping: which QConfig each operator has, or what its ``to_dict`` returns.
        example_inputs: a tuple of inputs to export it with.
        backend_config: what can be quantized, or what its ``to_dict`` returns; None means
            :func:`get_native_backend_config`.
        dynamic_shapes: sizes that may differ from those of ``example_inputs``, as in ``torch.export``.
        instruments: what looks on while the passes run.
        strict: raise StrictModeError in place of warnings; see :func:`lowbit.prepare_pt2e`.

    Returns:
        A graph module to be calibrated: run it on representative inputs. :func:`lowbit.decisions` says what
        stays float, and why.

    Raises:
        GraphInputError: ``model`` is no module, does not export, or has operators in training mode
            (BatchNorm, dropout), or ``example_inputs`` is no tuple.
        DeviceError: model and inputs are on different devices, or a BatchNorm that is to be folded is on the
            meta device.
        SpecError: ``qconfig_mapping`` or ``backend_config`` is none, or a QConfig is for training.
        UnknownNameError: the mapping names a module, or the number of a call, that ``model`` does not have.
    """
    mapping, config = _mapping(qconfig_mapping, model), _config(backend_config)
    backend = compile_backend(config, mapping)
    exported = _export(model, example_inputs, dynamic_shapes)
    prepared = prepare_pt2e(
        exported, backend.quantizer(), pipeline=backend.prepare, instruments=instruments, strict=strict
    )
    prepared.meta[BACKEND_CONFIG_KEY] = config.name
    return prepared


def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Mapping[str, Any],
    example_inputs: tuple[Any, ...],
    *,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    instruments: Sequence[Instrument] = (),
    strict: bool = False,
) -> GraphModule:
    """Export ``model`` and insert fake quantizers, for quantization-aware training.

    ::

        prepared = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping(), example_inputs)

    Args:
        model: a module in training mode; one in eval mode is prepared as it is. It is not changed.
        qconfig_mapping: as of :func:`prepare_fx`, with fake quantizers.
        example_inputs: likewise; BatchNorm needs more than one example.
        backend_config: likewise.
        dynamic_shapes: likewise.
        instruments: likewise.
        strict: likewise.

    Returns:
        A graph module with parameters of its own, to be trained; see :func:`lowbit.prepare_qat_pt2e`.

    Raises:
        GraphInputError, DeviceError, SpecError, UnknownNameError: as :func:`prepare_fx`, in either mode.
    """
    mapping, config = _mapping(qconfig_mapping, model), _config(backend_config)
    backend = compile_backend(config, mapping, is_qat=True)
    exported = _export(model, example_inputs, dynamic_shapes)
    prepared = prepare_qat_pt2e(
        exported, backend.quantizer(), pipeline=backend.prepare_qat, instruments=instruments, strict=strict
    )
    prepared.meta[BACKEND_CONFIG_KEY] = config.name
    return prepared


def convert_fx(
    graph_module: GraphModule,
    *,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    instruments: Sequence[Instrument] = (),
) -> GraphModule:
    """Replace the observers of a calibrated or trained model by quantize/dequantize pairs.

    Args:
        graph_module: what :func:`prepare_fx` or :func:`prepare_qat_fx` returned. It is not changed.
        backend_config: the config that it was prepared with; may be left out.
        instruments: what looks on while the passes run.

    Returns:
        A graph module of float operators between quantize and dequantize, which ``lower_pt2e`` takes.

    Raises:
        SpecError: it was prepared with a config of another name.
        GraphInputError, StageError, NotCalibratedError: as of ``convert_pt2e``.
    """
    converted = convert_pt2e(graph_module, instruments=instruments)
    if backend_config is not None:
        given, before = _config(backend_config).name, converted.meta.get(BACKEND_CONFIG_KEY)
        if before is not None and before != given:
            raise SpecError(
                f"the model was prepared with the config of {before!r}, and converted with that of {given!r}",
                hint="prepare it again: what is quantized is settled then",
            )
    return converted


def _mapping(given: object, model: object) -> QConfigMapping:
    mapping = QConfigMapping.from_dict(given) if isinstance(given, Mapping) else given
    if not isinstance(mapping, QConfigMapping):
        raise SpecError(
            f"{given!r} is no QConfigMapping",
            hint="pass QConfigMapping().set_global(qconfig), or get_default_qconfig_mapping()",
        )
    if not isinstance(model, nn.Module):
        found = "an ExportedProgram" if isinstance(model, torch.export.ExportedProgram) else f"{model!r}"
        raise GraphInputError(
            f"the model is {found}, not a module",
            hint="pass the module itself: it is exported here; prepare_pt2e takes what is exported already",
        )
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    orders = mapping.module_name_object_type_order_qconfigs
    for name in (*mapping.module_name_qconfigs, *(name for name, _, _ in orders)):
        if name not in modules:
            raise _no_module(f"the model has no module {name!r}", name, modules)
    for regex in mapping.module_name_regex_qconfigs:
        if not any(re.match(regex, name) for name in modules):
            raise _no_module(f"no module of the model matches {regex!r}", regex, modules)
    return mapping


def _no_module(found: str, name: str, modules: list[str]) -> UnknownNameError:
    near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4) or modules[1:]
    return UnknownNameError(found, hint=f"the nearest: {', '.join(near)}" if near else "it has no modules")


def _config(given: object) -> BackendConfig:
    if given is None:
        return get_native_backend_config()
    config = BackendConfig.from_dict(given) if isinstance(given, Mapping) else given
    if not isinstance(config, BackendConfig):
        raise SpecError(f"{given!r} is no BackendConfig", hint="pass BackendConfig(name), or its to_dict()")
    return config


def _export(model: nn.Module, example_inputs: object, dynamic_shapes: Any) -> GraphModule:
    if not isinstance(example_inputs, tuple):
        raise GraphInputError(
            f"the example inputs are a {type(example_inputs).__name__}",
            hint="pass a tuple, of one input too: (x,)",
        )
    try:
        exported = torch.export.export(model, example_inputs, dynamic_shapes=dynamic_shapes).module()
    except Exception as error:
        # Export raises whatever the model, or any operator in it, does.
        raise _does_not_export(model, example_inputs, error) from error
    assert isinstance(exported, GraphModule)
    return exported


def _does_not_export(model: nn.Module, example_inputs: tuple[Any, ...], error: Exception) -> LowbitError:
    owned = dict.fromkeys(t.device.type for t in (*model.parameters(), *model.buffers()))
    tensors = [leaf for leaf in pytree.tree_leaves(example_inputs) if isinstance(leaf, torch.Tensor)]
    given = dict.fromkeys(t.device.type for t in tensors)
    if len(owned | given) > 1:
        on_meta = "; the meta device has no values: to_empty(), then load_state_dict()" * (
            "meta" in owned | given
        )
        return DeviceError(
            f"the model, which has tensors on {' and '.join(owned)}, does not export with inputs on "
            f"{' and '.join(given)}",
            hint=f"bring both to one device, or let the model move what it reads{on_meta}",
        )
    first, *_ = str(error).splitlines() or [""]
    return GraphInputError(
        f"the model does not export with these inputs: {type(error).__name__}: {first}",
        hint="see torch's own text above; torch.export.export(model, example_inputs) gives the same",
    )
