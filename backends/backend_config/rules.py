"""From a BackendConfig to rules, and from rules to the places of a graph that they speak of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import attrs
from torch.fx import Node

from .config import BackendConfig
from .pattern_config import BackendPatternConfig, MatchAllNode, nested_pattern
from .units import Key, Unit, describe_key, key_of

__all__ = ["Item", "Place", "Rule", "RuleBook", "find_place", "read_rules"]


@attrs.frozen
class Item:
    """A part of a pattern: a call, and what its first inputs come from.

    Args:
        key: what is called.
        inputs: the parts that make its inputs, None where they may come from anywhere; empty if nothing is
            said about any of them.
    """

    key: Key
    inputs: tuple[Item | None, ...] = ()

    @property
    def keys(self) -> Iterator[Key]:
        """All keys of the pattern, in the order in which they run."""
        for part in self.inputs:
            if part is not None:
                yield from part.keys
        yield self.key


@attrs.frozen(eq=False)
class Rule:
    """A pattern, and the config that says how it is quantized.

    Args:
        name: of the pattern, for the ledger: ``conv2d-relu``.
        item: the call it ends with.
        config: None for a pattern that the backend fuses but does not quantize.
    """

    name: str
    item: Item
    config: BackendPatternConfig | None


@attrs.frozen(eq=False)
class Place:
    """Where a rule applies: the units in the order in which they run."""

    rule: Rule
    units: tuple[Unit, ...]


@attrs.frozen(eq=False)
class RuleBook:
    """The rules of a backend, those with the most parts first.

    Args:
        ending: the rules by the key that their patterns end with.
        classes: the module classes that patterns name.
        joint: the names of the rules of several parts that each key is a part of.
    """

    ending: dict[Key, list[Rule]]
    classes: frozenset[Key]
    joint: dict[Key, list[str]]

    def knows(self, unit: Unit) -> bool:
        """Whether ``unit`` may be in a place that a rule speaks of."""
        return any(key in self.ending or key in self.joint for key in unit.keys)

    def of(self, unit: Unit) -> Iterable[Rule]:
        """The rules that may end with ``unit``, those with the most parts first."""
        rules = dict.fromkeys(itertools.chain.from_iterable(self.ending.get(key, ()) for key in unit.keys))
        return sorted(rules, key=lambda rule: -len([*rule.item.keys]))


def read_rules(backend_config: BackendConfig) -> RuleBook:
    """The rules of ``backend_config``.

    Raises:
        UnknownNameError: a pattern has a function that is not torch's.
    """
    by_pattern = {_item(nested_pattern(config)): config for config in backend_config.configs}
    ending: dict[Key, list[Rule]] = {}
    joint: dict[Key, list[str]] = {}
    for item, config in by_pattern.items():
        keys = list(dict.fromkeys(item.keys))
        rule = Rule(
            "-".join(describe_key(key).lower() for key in item.keys), item, _decides(config, by_pattern)
        )
        ending.setdefault(item.key, []).append(rule)
        for key in keys if len(keys) > 1 else ():
            joint.setdefault(key, []).append(rule.name)
    classes = {key for item in by_pattern for key in item.keys if key[0] == "module"}
    return RuleBook(ending, frozenset(classes), joint)


def _item(pattern: Any) -> Item:
    if not isinstance(pattern, tuple):
        return Item(key_of(pattern))
    called, *inputs = pattern
    return Item(key_of(called), tuple(None if part is MatchAllNode else _item(part) for part in inputs))


def _decides(
    config: BackendPatternConfig, by_pattern: dict[Item, BackendPatternConfig]
) -> BackendPatternConfig | None:
    """The config that quantizes the pattern of ``config``: that of what it is fused into, if it is."""
    if config.fused_module is None and config.fuser_method is None:
        return config
    fused = config.fused_module or config.root_module
    return None if fused is None else by_pattern.get(Item(key_of(fused)))


_Found: TypeAlias = list[Unit]


def find_place(rule: Rule, last: Unit, unit_of: dict[Node, Unit], taken: set[Unit]) -> Place | None:
    """Where ``rule`` ends with ``last``, or None.

    No unit there is ``taken``, and none but the last is read outside.
    """
    units: list[Unit] = []
    if _find(rule.item, last, unit_of, taken, units):
        return Place(rule, tuple(units))
    return None


def _find(item: Item, unit: Unit, unit_of: dict[Node, Unit], taken: set[Unit], units: _Found) -> bool:
    if item.key not in unit.keys or unit in taken or unit in units:
        return False
    if item.inputs and len(item.inputs) != len(unit.activations):
        return False
    for part, (producer, reader) in zip(item.inputs, unit.activations, strict=False):
        if part is None:
            continue
        source = unit_of.get(producer)
        if source is None or source.outputs != [producer] or set(producer.users) != {reader}:
            return False
        if not _find(part, source, unit_of, taken, units):
            return False
    units.append(unit)
    return True
