"""Which QConfig each unit of a graph has, by the precedence of a QConfigMapping."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import attrs

from ...errors import IneffectiveSettingWarning, UnknownNameError
from .default_mappings import TYPES_OF_DEFAULTS
from .qconfig import QConfig
from .qconfig_mapping import QConfigMapping
from .units import Key, Unit, describe_key, key_of

__all__ = ["Setting", "check_calls", "select_qconfigs", "strongest_settings", "warn_of_idle_settings"]


@attrs.frozen
class Setting:
    """One setting of a QConfigMapping: by what it selects, and what it selects by."""

    by: Literal["object type", "module name regex", "module name", "call"]
    what: Any

    def __str__(self) -> str:
        if self.by == "call":
            name, kind, index = self.what
            return f"call {index} of {describe_key(key_of(kind))} in module {name!r}"
        described = describe_key(key_of(self.what)) if self.by == "object type" else repr(self.what)
        return f"{self.by} {described}"


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
    return {unit: qconfig for unit, (_, qconfig) in strongest_settings(units, mapping).items()}


def strongest_settings(
    units: Iterable[Unit], mapping: QConfigMapping
) -> dict[Unit, tuple[Setting | None, QConfig | None]]:
    """The setting that decides about each of ``units``, and its QConfig; None stands for the global one.

    Raises:
        UnknownNameError: the mapping names a function that is not torch's.
    """
    by_type = {
        key_of(kind): (Setting("object type", kind), qconfig)
        for kind, qconfig in mapping.object_type_qconfigs.items()
    }
    regexes = [
        (re.compile(text), (Setting("module name regex", text), qconfig))
        for text, qconfig in mapping.module_name_regex_qconfigs.items()
    ]
    by_name = {
        name: (Setting("module name", name), qconfig)
        for name, qconfig in mapping.module_name_qconfigs.items()
    }
    by_call = {
        (name, key_of(kind), index): (Setting("call", (name, kind, index)), qconfig)
        for (name, kind, index), qconfig in mapping.module_name_object_type_order_qconfigs.items()
    }
    calls: Counter[tuple[str, Key]] = Counter()
    chosen: dict[Unit, tuple[Setting | None, QConfig | None]] = {}
    for unit in units:
        decides: tuple[Setting | None, QConfig | None] = (None, mapping.global_qconfig)
        # The class of the module around a function is said later, and counts more.
        for key in (*reversed(unit.keys), *filter(None, (unit.scope_key,))):
            decides = by_type.get(key, decides)
        decides = next((found for regex, found in regexes if regex.match(unit.module)), decides)
        decides = _by_name(unit.module, by_name) or decides
        for key in unit.keys:
            decides = by_call.get((unit.scope, key, calls[unit.scope, key]), decides)
            calls[unit.scope, key] += 1
        chosen[unit] = decides
    return chosen


def _by_name(
    name: str, by_name: dict[str, tuple[Setting, QConfig | None]]
) -> tuple[Setting, QConfig | None] | None:
    """What is set for the module ``name``, or for the nearest module around it for which something is."""
    while name and name not in by_name:
        name = name.rpartition(".")[0]
    # The whole model, whose name is "", is around everything.
    return by_name.get(name)


def warn_of_idle_settings(
    chosen: dict[Unit, tuple[Setting | None, QConfig | None]],
    mapping: QConfigMapping,
    has_pattern: Callable[[Unit], bool],
) -> None:
    """Warn with IneffectiveSettingWarning of settings that decide about nothing that could be quantized.

    What stays float by itself may be said to stay float, and the object types of default mappings are for any
    model.

    Args:
        chosen: what :func:`strongest_settings` returned.
        mapping: the mapping it was of.
        has_pattern: whether the backend has a pattern with a unit in it.
    """
    deciding = {setting: None for unit, (setting, _) in chosen.items() if has_pattern(unit)}
    for setting, qconfig in _settings(mapping):
        why = None if setting in deciding else _why_idle(setting, qconfig, chosen)
        if why is not None:
            text = f"the QConfig for {setting} changes nothing: {why}"
            warnings.warn(IneffectiveSettingWarning(text), stacklevel=2)


def _settings(mapping: QConfigMapping) -> Iterator[tuple[Setting, QConfig | None]]:
    for kind, qconfig in mapping.object_type_qconfigs.items():
        if kind not in TYPES_OF_DEFAULTS:
            yield Setting("object type", kind), qconfig
    for text, qconfig in mapping.module_name_regex_qconfigs.items():
        yield Setting("module name regex", text), qconfig
    for name, qconfig in mapping.module_name_qconfigs.items():
        yield Setting("module name", name), qconfig
    for call, qconfig in mapping.module_name_object_type_order_qconfigs.items():
        yield Setting("call", call), qconfig


def _why_idle(
    setting: Setting,
    qconfig: QConfig | None,
    chosen: dict[Unit, tuple[Setting | None, QConfig | None]],
) -> str | None:
    selected = [unit for unit in chosen if _selects(setting, unit)]
    if not selected:
        return f"nothing is called there; the nearest where something is: {_nearest(setting, chosen)}"
    stronger = [str(s) for unit in selected if (s := chosen[unit][0]) is not None and s != setting]
    if len(stronger) == len(selected):
        return f"settings that count more are about the same calls: {', '.join(dict.fromkeys(stronger))}"
    if qconfig is None:
        return None
    called = dict.fromkeys(describe_key(unit.keys[0]) for unit in selected)
    return f"the backend has no pattern for what it selects: {', '.join(called)}"


def _nearest(setting: Setting, chosen: Iterable[Unit]) -> str:
    if setting.by == "object type":
        wanted = describe_key(key_of(setting.what))
        keys = (key for unit in chosen for key in (*unit.keys, unit.scope_key) if key is not None)
        known = dict.fromkeys(map(describe_key, keys))
    else:
        wanted, known = str(setting.what), dict.fromkeys(unit.module for unit in chosen if unit.module)
    return ", ".join(difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or list(known)[:3]) or "none"


def _selects(setting: Setting, unit: Unit) -> bool:
    if setting.by == "object type":
        return key_of(setting.what) in (*unit.keys, unit.scope_key)
    if setting.by == "module name regex":
        return re.match(setting.what, unit.module) is not None
    if setting.by == "module name":
        return setting.what == "" or f"{unit.module}.".startswith(f"{setting.what}.")
    # A call that there is was counted by its number already.
    return unit.scope == setting.what[0] and key_of(setting.what[1]) in unit.keys
