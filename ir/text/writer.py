"""From a graph module to its text; see :mod:`.syntax` for the grammar."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import torch
from torch.fx import GraphModule, Node

from ...errors import GraphInputError, LowbitError, UnsupportedError
from ..annotation import QuantizationAnnotation
from ..graph_module import ExportedGraphModule
from ..ledger import Ledger
from ..location import locate
from ..meta import ANNOTATION_KEY, LEDGER_KEY, STAGE_KEY
from ..stages import get_stage
from ..wording import with_article
from .exported import checks_inputs, guards_as_graph, is_guards, read_signature
from .modules import FoundTensor, Submodule, own_state, submodules, tensors_of
from .places import PLACE_KEYS, Places
from .references import name_operator
from .statements import FORMAT
from .structures import write_structure
from .symbols import write_end
from .tensors import Placement, as_stored, place_tensors
from .values import NoTextError, ValueWriter, key, node_name, path, quoted

__all__ = ["Parts", "take_apart", "to_tensors", "to_text"]

_log = logging.getLogger("lowbit.ir.text")

# Made of "val", and read by nothing that "val" would not tell.
_LEFT_OUT: Final = frozenset({"val", "tensor_meta", *PLACE_KEYS})


def to_text(gm: GraphModule) -> str:
    """``gm`` as text, complete but for the values of its tensors (:func:`to_tensors`).

    Graph, annotations, observers and fake quantizers with their state, nested graphs, input checks, symbolic
    sizes, stage, decisions, and where each node comes from; at every stage. Not kept are gradients
    (``.grad``), and metadata of others that is not plain data, which is logged.

    Args:
        gm: a graph module, prepared, calibrated, converted or not.

    Returns:
        Text that ends with a line break. Equal graph modules give equal texts in every process.

    Raises:
        GraphInputError: ``gm`` is not a graph module.
        UnsupportedError: something that text cannot hold: a lambda, a hook, the packed weight of a kernel.
    """
    return _Writer(_checked(gm)).text()


def to_tensors(gm: GraphModule) -> dict[str, torch.Tensor]:
    """The tensors that belong beside the text of ``gm``, by the names it gives them.

    Tensors that share memory are one of them, and so is a tensor with several names. They are contiguous and
    on the CPU; where they can be they are those of ``gm`` itself.

    Raises:
        UnsupportedError: a tensor that no file can hold, such as the packed weight of a kernel.
    """
    writer = _Writer(_checked(gm))
    return as_stored(writer.named_tensors, writer.placements)


@attrs.frozen
class Parts:
    """A graph module taken apart.

    Args:
        text: as of :func:`to_text`.
        tensors: the tensors of the module itself, by every dotted path they have.
        imports: the Python modules that must be loaded to read the text.
    """

    text: str
    tensors: Mapping[str, torch.Tensor]
    imports: tuple[str, ...]


def take_apart(gm: GraphModule) -> Parts:
    """``gm`` as its text and its own tensors.

    Raises:
        UnsupportedError: as :func:`to_text`.
    """
    writer = _Writer(gm)
    return Parts(writer.text(), dict(writer.named_tensors), tuple(writer.value.imports))


def _checked(gm: object) -> GraphModule:
    if not isinstance(gm, GraphModule):
        raise GraphInputError(
            f"there is text for graph modules, not for {with_article(type(gm).__name__)}",
            hint="export the model first: torch.export.export(model.eval(), example_inputs).module()",
        )
    return gm


class _Writer:
    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.tree = submodules(gm)
        paths = {id(s.module): s.path for s in self.tree if s.module is not None and s.same is None}
        self.value = ValueWriter(paths)
        self.places = Places(self.value)
        self.left_out: dict[str, str] = {}
        self.tensors = self._find_tensors()
        self.named_tensors = [(t.path, t.tensor) for t in self.tensors if t.tensor is not None]
        self.placements = place_tensors(self.named_tensors)

    def _find_tensors(self) -> list[FoundTensor]:
        try:
            return list(tensors_of(self.tree))
        except UnsupportedError as error:
            readers = [n for n in self.gm.graph.find_nodes(op="get_attr") if repr(n.target) in error.found]
            error.where = (*error.where, *(place for n in readers[:1] for place in locate(n)))
            raise

    def text(self) -> str:
        # What is written first in the text may be known last: tables are filled by what refers to them.
        graphs = [line for s in self.tree for line in self._graph(s)]
        sections = {
            "modules": list(self._modules()),
            "tensors": list(self._tensors()),
            "ledger": list(self._ledger()),
        }
        places = {
            "places": [f"@{i} {place}" for place, i in self.places.places.items()],
            "frames": [f"&{i} = {frame}" for frame, i in self.places.frames.items()],
        }
        tables = {
            "symbols": list(self._symbols()),
            "specs": [f"#{i} = {entry}" for entry, i in self.value.specs.items()],
        }
        left_out = {**self.left_out, **self.places.left_out}
        if left_out:
            kinds = ", ".join(f"{k} ({kind})" for k, kind in sorted(left_out.items()))
            _log.info("metadata left out of the text of a graph, since it is not plain data: %s", kinds)
        lines = [f"lowbit-graph {FORMAT}", f"stage {get_stage(self.gm).name}"]
        lines += _sections(tables) + graphs + _sections({**sections, **places})
        return "\n".join(lines) + "\n"

    # Graphs.

    def _graph(self, place: Submodule) -> Iterator[str]:
        module = place.module
        if place.same is not None or module is None:
            return
        if is_guards(module):
            inputs = len(self.gm.graph.find_nodes(op="placeholder"))
            guards = GraphModule(torch.nn.Module(), guards_as_graph(module, inputs), type(module).__name__)
            guards.training = module.training
            module = guards
        if not isinstance(module, GraphModule):
            return
        yield ""
        yield f"graph {path(place.path) if place.path else 'self'} {quoted(type(module).__name__)}"
        signature = read_signature(module.graph)
        if signature is not None:
            with _Inside(f"the inputs and outputs of graph {place.path or 'self'}"):
                yield f"  names {self.value.write(list(signature.names))}"
                yield f"  inputs {write_structure(signature.inputs, self.value)}"
                if signature.outputs is not None:
                    yield f"  outputs {write_structure(signature.outputs, self.value)}"
        if checks_inputs(module):
            yield "  checked"
        for name, value in module.meta.items():
            if name in (STAGE_KEY, LEDGER_KEY) and module is self.gm:
                continue
            with _Inside(f"meta[{name!r}] of graph {place.path or 'self'}"):
                yield f"  meta {key(str(name))} = {self.value.write(value)}"
        yield from self._nodes(module)

    def _nodes(self, gm: GraphModule) -> Iterator[str]:
        self.value.nodes = nodes = dict.fromkeys(gm.graph.nodes)
        for node in nodes:
            with _Inside(f"%{node.name}", node):
                yield f"  {self._node(node)}"
        self.value.nodes = {}

    def _node(self, node: Node) -> str:
        kind = node.meta.get("val")
        head = node_name(node) if kind is None else f"{node_name(node)}: {self.value.fake_value(kind)}"
        suffix = self._metadata(node)
        return f"{head} = {self._call(node)}{suffix}"

    def _call(self, node: Node) -> str:
        target: Any = node.target
        arguments = self.value.arguments(node.args, node.kwargs)
        match node.op:
            case "placeholder":
                return f"input {path(target)}" + (f" = {arguments}" if node.args else "")
            case "get_attr":
                return f"get {path(target)}"
            case "output":
                return f"return {arguments}"
            case "call_module":
                return f"self.{path(target)}({arguments})"
            case "call_method":
                return f".{target}({arguments})"
            case _:
                name = name_operator(target) or self.value.reference(target)
                if name is None:
                    raise NoTextError(f"it calls {target!r}, which cannot be found by name")
                return f"{name}({arguments})"

    def _metadata(self, node: Node) -> str:
        entries = {
            k: self._meta_value(k, v)
            for k, v in sorted(node.meta.items(), key=lambda item: str(item[0]))
            if k not in _LEFT_OUT
        }
        place = self.places.write(node.meta)
        if place:
            entries["at"] = place
        written = [f"{key(str(k))}: {text}" for k, text in entries.items() if text is not None]
        return f" {{{', '.join(written)}}}" if written else ""

    def _meta_value(self, name: Any, value: Any) -> str | None:
        if name == ANNOTATION_KEY:
            return self._annotation(value)
        try:
            return self.value.write(value)
        except NoTextError:
            if str(name).startswith("lowbit."):
                raise
            self.left_out[str(name)] = type(value).__qualname__
            return None

    def _annotation(self, annotation: object) -> str:
        if not isinstance(annotation, QuantizationAnnotation):
            kind = f"{type(annotation).__module__}.{type(annotation).__qualname__}"
            raise NoTextError(f"it is annotated with a {kind}, not with a QuantizationAnnotation of lowbit")
        keywords: dict[str, Any] = {}
        if annotation.input_qspec_map:
            keywords["inputs"] = annotation.input_qspec_map
        if annotation.output_qspec is not None:
            keywords["output"] = annotation.output_qspec
        if not annotation.allow_implicit_sharing:
            keywords["allow_implicit_sharing"] = False
        if annotation._annotated:
            keywords["annotated"] = True
        return self.value.call("annotation", **keywords)

    # Tables.

    def _symbols(self) -> Iterator[str]:
        for s in self.value.symbols.symbols():
            words = [*s.assumptions, *(["size"] if s.is_size else [])]
            if s.lower is not None:
                words.append(f"range=interval({write_end(s.lower)}, {write_end(s.upper)})")
            if s.hint is not None:
                words.append(f"hint={s.hint!r}")
            yield f"{s.name} = symbol({', '.join(words)})"

    def _modules(self) -> Iterator[str]:
        for place in self.tree:
            name = path(place.path) if place.path else "self"
            if place.module is None:
                yield f"{name} = none"
            elif place.same is not None:
                yield f"{name} = same {path(place.same) if place.same else 'self'}"
            else:
                with _Inside(f"submodule {place.path!r}"):
                    yield f"{name} = {self._module(place.path or 'self', place.module)}"

    def _module(self, where: str, module: torch.nn.Module) -> str:
        if is_guards(module):
            # As the graph that stands for it is read back.
            return f"graph(_is_impure=True){_mode(module, self.gm)}"
        state = {k: v for k, v in own_state(module).items() if not isinstance(v, torch.Tensor)}
        written: list[str] = []
        for name, value in state.items():
            with _Inside(f"{where}.{name}"):
                written.append(self.value.keyword(name, value))
        if isinstance(module, GraphModule):
            # What torch.export returns hides train and eval behind functions that refuse.
            exported = isinstance(module, ExportedGraphModule) or "train" in vars(module)
            kind = "exported" if exported else "graph"
        elif type(module) is torch.nn.Module:
            kind = "container"
        else:
            kind = self.value.reference(type(module))
            if kind is None:
                raise NoTextError(
                    f"it is a {type(module).__qualname__}, which cannot be found by name: define it at the "
                    "top level of a module"
                )
        return f"{kind}({', '.join(written)}){_mode(module, self.gm)}"

    def _tensors(self) -> Iterator[str]:
        placements = iter(self.placements)
        for found in self.tensors:
            if found.tensor is None:
                yield f"{path(found.path)} = {found.kind}(None)"
            else:
                with _Inside(f"tensor {found.path!r}"):
                    yield f"{path(found.path)} = {self._tensor(found, found.tensor, next(placements))}"

    def _tensor(self, found: FoundTensor, tensor: torch.Tensor, place: Placement) -> str:
        words = [self.value.tensor_type(tensor)]
        if tensor.requires_grad is not (found.kind == "parameter"):
            words.append(f"grad={tensor.requires_grad}")
        if found.transient:
            words.append("transient=True")
        if place.same is not None:
            words.append(f"same={quoted(place.same)}")
        elif place.offset is not None:
            words.append(f"memory={quoted(place.key)}, offset={place.offset}")
        few = f"  ; {tensor.tolist()}" if tensor.numel() <= 4 else ""
        return f"{found.kind}({', '.join(words)}){few}"

    def _ledger(self) -> Iterator[str]:
        ledger = self.gm.meta.get(LEDGER_KEY)
        if not isinstance(ledger, Ledger):
            return
        for entry in ledger.entries:
            fields = attrs.asdict(entry, recurse=False)
            if not entry.note:
                del fields["note"]
            nearest = fields.pop("nearest")
            if nearest is not None:
                fields["nearest"] = attrs.astuple(nearest)
            origin = self.places.write(fields.pop("origin"))
            with _Inside("the ledger"):
                yield f"{self.value.call('decision', **fields)}{' ' + origin if origin else ''}"
        for entry in ledger.gone_entries:
            fields = attrs.asdict(entry, recurse=False)
            origin = self.places.write(fields.pop("origin"))
            with _Inside("the ledger"):
                yield f"{self.value.call('gone', **fields)}{' ' + origin if origin else ''}"


def _sections(sections: Mapping[str, list[str]]) -> list[str]:
    lines: list[str] = []
    for name, content in sections.items():
        if content:
            lines += ["", name, *(f"  {line}" for line in content)]
    return lines


def _mode(module: torch.nn.Module, top: GraphModule) -> str:
    if module is top:
        return " train" if module.training else " eval"
    return "" if module.training == top.training else " train" if module.training else " eval"


@attrs.frozen
class _Inside:
    """Turns what has no text into an error that says where."""

    what: str
    node: Node | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NoTextError):
            raise UnsupportedError(
                f"{self.what} cannot be written as text: {error}",
                where=() if self.node is None else locate(self.node),
                hint="remove it, or make it plain data: numbers, text, dtypes, lists, named functions and "
                "classes",
            ) from None
        if isinstance(error, LowbitError) and self.node is not None and not error.where:
            error.where = locate(self.node)
