"""How far the values of two runs may be apart: the roundings that a contract allows, of what is summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from ..ir.batch_norm import PRODUCERS
from ..ir.schema import OpOverload, operator_name, signature
from .contracts import Contract
from .traces import Call, Read

__all__ = ["Values", "difference"]

_FLOAT64_ROUNDING: Final = 2.0**-40
"""Sums in another order differ by this much of their terms at most, with 2^12 of them."""


@attrs.frozen(eq=False)
class Values:
    """The value of one node in one run, and what it was computed of.

    Args:
        name: of the node.
        value: what it computed, a tensor or several.
        calls: what the nodes of the graph were.
        read: what nodes read of each, by name.
    """

    name: str
    value: Any
    calls: Mapping[str, Call]
    read: Mapping[str, Any]


def difference(got: Values, want: Values, contract: Contract, *, of_rounded: bool = False) -> str | None:
    """What is wrong with ``got``, where ``want`` was before and ``contract`` holds; None if nothing is.

    With ``of_rounded``, what is summed may have been rounded to the dtype of the contract as well.
    """
    some, others = pytree.tree_leaves(got.value), pytree.tree_leaves(want.value)
    if len(some) != len(others):
        return f"{len(some)} values in place of {len(others)}"
    dtypes = want.calls[want.name].dtypes
    stored = dtypes if len(dtypes) == len(others) else (None,) * len(others)
    for one, other, dtype in zip(some, others, stored, strict=True):
        if one is other:
            continue
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            wrong = None if one == other else f"{one!r} in place of {other!r}"
        elif one.is_floating_point() and other.is_floating_point():
            shares = _shares(contract, dtype, of_rounded)
            # Constants are of any dtype.
            wrong = _of_floats(one.double(), other.double(), shares, lambda own: _summed(got, want, own))
        else:
            wrong = _of_integers(one, other, contract.steps)
        if wrong is not None:
            return wrong
    return None


def _of_integers(one: Tensor, other: Tensor, steps: int) -> str | None:
    if one.dtype is not other.dtype or one.shape != other.shape:
        return _other_form(one, other)
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return None  # packed for a kernel, into which nobody sees; what the kernel computes tells
    if torch.equal(one, other):
        return None
    largest = float((one.double() - other.double()).abs().max())
    return None if largest <= steps else f"it is {largest:.3g} steps off, {steps} allowed"


def _of_floats(
    one: Tensor, other: Tensor, shares: tuple[float, float], summed: Callable[[Tensor], Tensor]
) -> str | None:
    """Each element may be off by a share of itself, and by one of what is summed to it."""
    if one.shape != other.shape:
        return _other_form(one, other)
    if torch.equal(one, other):
        return None
    # Where both are infinite, or both no number, nothing is wrong.
    apart = (one - other).abs().where((one != other) & ~(one.isnan() & other.isnan()), 0.0)
    own = _finite(other.abs())
    if (apart <= own * sum(shares)).all():
        return None
    allowed = own * shares[0] + summed(own) * shares[1]
    excess = (apart - allowed).nan_to_num(nan=torch.inf)
    if not (excess > 0).any():
        return None
    at = int(excess.argmax())
    return f"it is {float(apart.flatten()[at]):.3g} off, {float(allowed.flatten()[at]):.3g} allowed"


def _other_form(one: Tensor, other: Tensor) -> str:
    return f"{one.dtype} {tuple(one.shape)} in place of {other.dtype} {tuple(other.shape)}"


def _shares(contract: Contract, stored: torch.dtype | None, of_rounded: bool) -> tuple[float, float]:
    """How far a float may be off that the graph says is ``stored`` so.

    Returns:
        A share of itself, and one of what is summed to it.
    """
    # Two roundings of r each make a little more: (1 + r)^2 = 1 + 2 r + r^2.
    allowed = contract.tolerance * (1 + contract.tolerance)
    if contract.is_narrow:
        return allowed, _FLOAT64_ROUNDING + (allowed if of_rounded else 0.0)
    if stored is not None and stored.is_floating_point:
        narrow = torch.finfo(stored).eps
        if narrow > torch.finfo(contract.dtype).eps:
            allowed += contract.stored * narrow / 2 * (1 + contract.stored * narrow / 2)
    return 0.0, allowed + _FLOAT64_ROUNDING


def _summed(got: Values, want: Values, own: Tensor) -> Tensor:
    """The size of what is summed to a tensor of the size ``own``: roundings are relative to that.

    One number for all elements: of a constant that a pass computed it is not known what was summed to it, and
    where little is left of that in one channel, the others tell its size. A pass rounds what it made, so that
    counts; where it is a kernel, into which nobody sees, what was there before.
    """
    terms = _terms(got, sums=False)
    terms = _terms(want, sums=True) if terms is None else terms
    computed = _terms_of_constants(want)
    if terms is not None and computed is not None:
        terms = torch.maximum(terms, computed)
    return own.max() if terms is None else torch.maximum(terms, own.max())


def _terms(of: Values, *, sums: bool) -> Tensor | None:
    """The absolute terms of the product that ``of`` is, or that operators on one tensor alone made it of.

    What stands behind a sum (a clamp, say) may leave little of it, and has the roundings of all of it.

    Returns:
        They are added up, and the largest sum is taken. None if there is no product.
    """
    name, largest = of.name, torch.zeros(()).double()
    while (call := of.calls[name]).called[1] not in _PRODUCTS:
        sources = [source for source in call.sources if _is_computed_float(of, source)]
        target = call.called[1]
        if sums and target in _SUMS and len(sources) == 2:
            return _terms_of_sum(of, sources, largest)
        if len(sources) != 1 or not isinstance(target, OpOverload) or operator_name(target)[0] != "aten":
            return None
        (name,) = sources
        largest = torch.maximum(largest, _largest(of.read[name]))
    return torch.maximum(largest, _largest(_sum_of_absolutes(call, of.read)))


def _terms_of_sum(of: Values, sources: list[str], largest: Tensor) -> Tensor | None:
    addends = [_terms(attrs.evolve(of, name=source), sums=False) for source in sources]
    if all(terms is None for terms in addends):
        return None
    pairs = zip(sources, addends, strict=True)
    first, second = [_largest(of.read[source]) if terms is None else terms for source, terms in pairs]
    return torch.maximum(largest, first + second)


def _terms_of_constants(of: Values) -> Tensor | None:
    """The size of a product with what it adds taken apart, where that is computed of constants at every call.

    Of a bias that a pass folds little may be left, ``beta - mean * scale`` say: it is rounded as those are.
    """
    call = of.calls[of.name]
    if call.called[1] not in _PRODUCTS:
        return None
    added = [
        name for name in call.sources if of.calls[name].called[1] in _SUMS and _is_of_constants(of, name)
    ]
    if not added:
        return None
    taken_apart = {name: _taken_apart(of, name) for name in added}
    return _largest(_sum_of_absolutes(call, {**of.read, **taken_apart}))


def _is_of_constants(of: Values, name: str) -> bool:
    call = of.calls[name]
    if call.called[0] == "call_function":
        return all(_is_of_constants(of, source) for source in call.sources)
    return call.called[0] == "get_attr"


def _taken_apart(of: Values, name: str) -> Tensor:
    """The absolute terms of a value that is computed by adding and multiplying, element by element."""
    call = of.calls[name]
    target = call.called[1]
    if target in _SUMS and len(call.sources) == 2:
        first, second = (_taken_apart(of, source) for source in call.sources)
        return first + second
    if target is _aten.mul.Tensor and len(call.sources) == 2:
        first, second = (_taken_apart(of, source) for source in call.sources)
        return first * second
    return _taken_apart(of, call.sources[0]) if target is _aten.neg.default else of.read[name].abs().double()


def _is_computed_float(of: Values, name: str) -> bool:
    value = of.read.get(name)
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return is_float and of.calls[name].called[0] != "get_attr"


def _sum_of_absolutes(call: Call, read: Mapping[str, Any]) -> Tensor:
    """A product with all factors taken as their absolute values: it is linear in each."""

    def absolute(argument: Any) -> Any:
        if isinstance(argument, Read):
            value = read[call.sources[argument.index]]
            return value.abs().double()
        is_number = isinstance(argument, (int, float)) and not isinstance(argument, bool)
        return abs(argument) if is_number else argument

    target = call.called[1]
    arguments = call.arguments[: len(signature(target).positional)]
    with torch.no_grad():
        return _finite(target(*map_aggregate(arguments, absolute)))


def _largest(value: Tensor) -> Tensor:
    return _finite(value.abs().double()).max() if value.numel() else torch.zeros(()).double()


def _finite(value: Tensor) -> Tensor:
    """``value``, with nothing where it is infinite or no number."""
    return value.nan_to_num(0.0, 0.0, 0.0)


_aten = torch.ops.aten

_PRODUCTS: Final = PRODUCERS | frozenset(
    {
        _aten.matmul.default,
        _aten.mm.default,
        _aten.bmm.default,
        _aten.mv.default,
        _aten.dot.default,
        _aten.addmm.default,
        _aten.baddbmm.default,
        _aten.einsum.default,
    }
)
"""Linear in each of the tensors that are multiplied, and in what is added."""

_SUMS: Final = frozenset({_aten.add.Tensor, _aten.sub.Tensor})
