"""Structures of inputs and outputs: ``(*, {"mask": *})`` for a tuple of a value and a dict."""

from __future__ import annotations

import json

from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

from .syntax import Source
from .trees import Call, Items, Leaf, Literal, Mapping, Tree
from .values import NoTextError, ValueWriter

__all__ = ["read_structure", "write_structure"]


def write_structure(spec: TreeSpec, write: ValueWriter) -> str:
    """The text of a structure: as it would be written for built-in ones, by torch's own JSON for others."""
    if spec.is_leaf():
        return "*"
    children = [write_structure(child, write) for child in spec.children()]
    if spec.type is tuple:
        return f"({', '.join(children)}{',' if len(children) == 1 else ''})"
    if spec.type is list:
        return f"[{', '.join(children)}]"
    if spec.type is dict:
        keys = [write.write(k) for k in spec.context]
        return f"{{{', '.join(f'{k}: {c}' for k, c in zip(keys, children, strict=True))}}}"
    try:
        # Parsed and dumped, for one spelling.
        text = json.dumps(json.loads(pytree.treespec_dumps(spec)), sort_keys=True)
    except (NotImplementedError, TypeError) as error:
        raise NoTextError(
            f"a {spec.type} in the inputs or outputs: register it with a serialized_type_name "
            f"(torch.export.register_dataclass): {error}"
        ) from None
    return write.call("treespec", text)


def read_structure(tree: Tree, source: Source) -> TreeSpec:
    """The structure that ``tree`` says."""
    match tree:
        case Leaf():
            return pytree.tree_structure(0)
        case Items():
            children = [read_structure(t, source) for t in tree.items]
            return TreeSpec(list if tree.kind == "[" else tuple, None, children)
        case Mapping():
            keys = [k.value for k, _ in tree.items if isinstance(k, Literal)]
            if len(keys) < len(tree.items):
                raise source.error(
                    tree.at, "a key of a structure is no literal", 'write keys as "text" or numbers'
                )
            return TreeSpec(dict, keys, [read_structure(t, source) for _, t in tree.items])
        case Call(name="treespec", args=(Literal(value=str() as text),)):
            try:
                return pytree.treespec_loads(text)
            except (ValueError, KeyError, TypeError, NotImplementedError) as error:
                raise source.error(
                    tree.at, f"torch does not read this structure: {error}", "import what defines it"
                ) from error
        case _:
            raise source.error(tree.at, "this is no structure", 'write it as (*, {"key": *})')
