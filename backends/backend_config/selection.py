"""Which QConfig each unit of a graph has, by the precedence of a QConfigMapping."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ...errors import UnknownNameError
from .qconfig import QConfig
from .qconfig_mapping import QConfigMapping
from .units import Key, Unit, describe_key, key_of

__all__ = ["check_calls", "select_qconfigs"]


def check_calls(units: Iterable[Unit], mapping: QConfigMapping) -> None:
    """See that the model has the calls that ``mapping`` names by their number.

    Raises:
        UnknownNameError: it has fewer, or the mapping names a function that is not torch's.
    """
    calls = Counter((unit.scope, key) for unit in units for key in unit.keys)
    for name, kind, index in mapping.module_name_object_type_order_qconfigs:
        key = key_of(kind)
        if index >= calls[name, key]:
            raise UnknownNameError(
                f"a QConfig is set for call {index} of {describe_key(key)} in module {name!r}, which has "
                f"{calls[name, key]} of them",
                hint="calls are counted from 0, those directly in the module only",
            )


def select_qconfigs(units: Iterable[Unit], mapping: QConfigMapping) -> dict[Unit, QConfig | None]:
    """The QConfig of each of ``units``, which are in the order in which they run.

    Raises:
        UnknownNameError: the mapping names a function that is not torch's.
    """
    by_type = {key_of(kind): qconfig for kind, qconfig in mapping.object_type_qconfigs.items()}
    regexes = [(re.compile(text), qconfig) for text, qconfig in mapping.module_name_regex_qconfigs.items()]
    orders = mapping.module_name_object_type_order_qconfigs
    by_order = {(name, key_of(kind), index): qconfig for (name, kind, index), qconfig in orders.items()}
    calls: Counter[tuple[str, Key]] = Counter()
    chosen: dict[Unit, QConfig | None] = {}
    for unit in units:
        qconfig = mapping.global_qconfig
        # The class of the module around a function is said later, and counts more.
        for key in (*reversed(unit.keys), *filter(None, (unit.scope_key,))):
            qconfig = by_type.get(key, qconfig)
        qconfig = next((q for regex, q in regexes if regex.match(unit.module)), qconfig)
        qconfig = _by_name(unit.module, mapping.module_name_qconfigs, qconfig)
        for key in unit.keys:
            qconfig = by_order.get((unit.scope, key, calls[unit.scope, key]), qconfig)
            calls[unit.scope, key] += 1
        chosen[unit] = qconfig
    return chosen


def _by_name(name: str, qconfigs: dict[str, QConfig | None], default: QConfig | None) -> QConfig | None:
    """The QConfig of the module ``name``, or of the nearest module around it that has one."""
    while name and name not in qconfigs:
        name = name.rpartition(".")[0]
    # The whole model, whose name is "", is around everything.
    return qconfigs.get(name, default)
