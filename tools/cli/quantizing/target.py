"""For whom a model is quantized: a backend, and the preset that its quantizer has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import attrs
from torch.fx import GraphModule

from ....backends.base import Backend
from ....backends.capabilities import Preset, mode_of
from ....backends.choosing import presets_for_calibration
from ....backends.composable import ComposableQuantizer
from ....backends.registry import backend_names, get_backend
from ....errors import OptionError, UnsupportedError
from ....ir.attributes import nested_graph_modules
from ....ir.gone import Gone, gone_by_name
from ....ir.location import module_path, module_stack
from ....ir.quantizer import Quantizer
from ....matchers.operator_pattern import Mode
from ....passes import PassContext, PassManager, Pipeline
from ....passes.registry import unknown_name
from .options import about_option

__all__ = [
    "Target",
    "check_left_float",
    "default_backend",
    "default_preset",
    "find_target",
    "make_quantizer",
]


@runtime_checkable
class _Configurable(Protocol):
    """What is asked of a backend's quantizer."""

    def set_global(self, quantization_config: Any) -> Any: ...

    def set_module_name(self, module_name: str, quantization_config: None) -> Any: ...


@attrs.frozen(eq=False)
class Target:
    """A backend with a preset.

    Args:
        backend: the backend.
        preset: name of the preset.
        presets: the preset of that name of each part of the backend that has it; of the others, their own.
        notes: what to say about the choice.
    """

    backend: Backend
    preset: str
    presets: dict[str, Preset]
    notes: tuple[str, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges are found before the model runs, from data."""
        return any(_is_static(preset) for preset in self.presets.values())


def default_backend() -> Backend:
    """The backend that is taken on this machine where none is named.

    Raises:
        OptionError: there is none, or there are several.
    """
    found = [b for name in backend_names() if (b := get_backend(name)).is_default and b.is_available()]
    if len(found) == 1:
        return found[0]
    many = ", ".join(backend.name for backend in found)
    raise OptionError(
        f"no backend was named, and {f'several are for this machine: {many}' if many else 'none is for it'}",
        hint="name one with --backend; lowbit backends lists them",
    )


def find_target(backend_name: str | None, preset_name: str | None) -> Target:
    """The backend and preset of these names, or what is right for this machine.

    Raises:
        UnknownNameError: no such backend or preset; the hint has the nearest.
        OptionError: the preset is for training, or there is no backend for this machine.
    """
    with about_option("backend"):
        backend = default_backend() if backend_name is None else get_backend(backend_name)
    known = [preset.name for preset in presets_for_calibration(backend)]
    if not known:
        raise OptionError(
            f"the backend {backend.name} has no presets",
            hint="quantize in Python, with its quantizer: prepare_pt2e(exported, quantizer)",
        )
    notes: tuple[str, ...] = ()
    if preset_name is None:
        preset_name, notes = _default_preset(backend)
    if preset_name not in known:
        with about_option("preset"):
            raise _no_preset(backend, preset_name, known)
    chosen = {part.name: _preset_of(part, preset_name) for part in _parts(backend)}
    return Target(backend, preset_name, chosen, notes)


def make_quantizer(target: Target, left_float: Iterable[str] = ()) -> Quantizer:
    """The backend's quantizer with the preset, and the modules named left float.

    Raises:
        UnsupportedError: the quantizer of the backend cannot be told so.
    """
    quantizer = target.backend.quantizer()
    parts = quantizer.quantizers if isinstance(quantizer, ComposableQuantizer) else (quantizer,)
    for part, (name, preset) in zip(parts, target.presets.items(), strict=True):
        if not isinstance(part, _Configurable):
            raise UnsupportedError(
                f"the quantizer of {name}, {type(part).__name__}, has no set_global and set_module_name",
                hint="derive it from PatternQuantizer, or quantize in Python",
            )
        part.set_global(preset.config())
        for module in left_float:
            part.set_module_name(module, None)
    return quantizer


def check_left_float(exported: GraphModule, left_float: Iterable[str], backend: Backend) -> None:
    """See that there are operators in each of the modules, as the pass ``annotate`` will be handed them.

    Raises:
        UnknownNameError: there are none in one of them; the hint has the nearest names.
        OptionError: passes take out those in it.
    """
    names = tuple(left_float)
    if not names:
        return
    prepare = backend.prepare
    before = prepare.passes[: prepare.names.index("annotate")] if "annotate" in prepare.names else ()
    context = PassContext()
    canonical = PassManager().run(exported, Pipeline(before), context)
    graphs = (canonical.graph, *(module.graph for module in nested_graph_modules(canonical)))
    operators = (node for graph in graphs for node in graph.nodes if node.op == "call_function")
    paths = dict.fromkeys(call.path for node in operators for call in module_stack(node.meta) if call.path)
    for name in names:
        if any(f"{path}.".startswith(f"{name}.") for path in paths):
            continue
        for gone in gone_by_name(context.ledger.gone, name):
            if gone.is_in(name):
                raise _is_gone(name, gone, canonical)
        raise unknown_name("module with operators to leave float", name, tuple(paths))


def _is_gone(name: str, gone: Gone, canonical: GraphModule) -> OptionError:
    into = next((module_path(node.meta) for node in canonical.graph.nodes if node.name == gone.into), "")
    if gone.why != "folded":
        hint = f"leave --left-float {name} out"
    else:
        hint = f"leave both float with --left-float {into}" if into else "name the module around both"
    return OptionError(f"there is nothing in {name} to leave float: {gone}", hint=hint)


def _parts(backend: Backend) -> tuple[Backend, ...]:
    return backend.parts or (backend,)


def _preset_of(part: Backend, name: str) -> Preset:
    presets = presets_for_calibration(part)
    return next((preset for preset in presets if preset.name == name), presets[0])


def default_preset(backend: Backend) -> str:
    """Name of the preset that is taken on this machine where none is named."""
    return _default_preset(backend)[0]


def _default_preset(backend: Backend) -> tuple[str, tuple[str, ...]]:
    """Its name, and a note on those that come before it and do not suit this machine.

    Of several backends, it is that of the first that finds ranges from data, as the others follow.
    """
    chosen = [_first_that_suits(presets_for_calibration(part)) for part in _parts(backend)]
    preset, unsuited = next((each for each in chosen if _is_static(each[0])), chosen[0])
    notes = (
        f"{each.unsuited}, so the preset is {preset.name}. To quantize for machines where it is otherwise: "
        f"--preset {each.name}"
        for each in unsuited
    )
    return preset.name, tuple(notes)


def _first_that_suits(presets: tuple[Preset, ...]) -> tuple[Preset, tuple[Preset, ...]]:
    """The first preset that suits this machine, the first of all if none does, and those before it."""
    index = next((i for i, preset in enumerate(presets) if preset.suits()), 0)
    return presets[index], presets[:index]


def _is_static(preset: Preset) -> bool:
    return mode_of(preset.config()) is Mode.STATIC


def _no_preset(backend: Backend, name: str, known: list[str]) -> Exception:
    if any(preset.name == name for part in _parts(backend) for preset in part.presets):
        return OptionError(
            f"the preset {name!r} is for training, and this command calibrates",
            hint=f"take {' or '.join(known)}; to train, use prepare_qat_pt2e in Python",
        )
    return unknown_name(f"preset of {backend.name}", name, tuple(known))
