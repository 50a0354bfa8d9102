"""``QConfigMapping``: which QConfig each operator of a model has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Self, TypeAlias

import attrs
import torch

from ...errors import SpecError
from .checks import known_keys, pairs_of
from .qconfig import QConfig

__all__ = ["ObjectType", "QConfigMapping"]

ObjectType: TypeAlias = "type[torch.nn.Module] | Callable[..., Any] | str"
"""A module class, a torch function, or the name of a tensor method."""

_LISTS: Final = {
    "object_type": 2,
    "module_name_regex": 2,
    "module_name": 2,
    "module_name_object_type_order": 4,
}


@attrs.define
class QConfigMapping:
    """The QConfigs of a model: a global one, and others for what is selected.

    ::

        QConfigMapping().set_global(qconfig).set_object_type(torch.nn.Linear, None)  # linears stay float

    Of all settings that select an operator the strongest applies, even if its QConfig is None, which leaves
    the operator float. From the weakest to the strongest: :meth:`set_global`, :meth:`set_object_type`,
    :meth:`set_module_name_regex`, :meth:`set_module_name`, :meth:`set_module_name_object_type_order`.
    """

    global_qconfig: QConfig | None = attrs.field(default=None, init=False)
    object_type_qconfigs: dict[ObjectType, QConfig | None] = attrs.field(
        factory=dict["ObjectType", "QConfig | None"], init=False
    )
    module_name_regex_qconfigs: dict[str, QConfig | None] = attrs.field(
        factory=dict[str, "QConfig | None"], init=False
    )
    module_name_qconfigs: dict[str, QConfig | None] = attrs.field(
        factory=dict[str, "QConfig | None"], init=False
    )
    module_name_object_type_order_qconfigs: dict[tuple[str, ObjectType, int], QConfig | None] = attrs.field(
        factory=dict["tuple[str, ObjectType, int]", "QConfig | None"], init=False
    )

    def set_global(self, global_qconfig: QConfig | None) -> Self:
        """Set what applies where nothing else does.

        Raises:
            SpecError: ``global_qconfig`` is no QConfig; so in the other setters.
        """
        self.global_qconfig = _checked(global_qconfig)
        return self

    def set_object_type(self, object_type: ObjectType, qconfig: QConfig | None) -> Self:
        """Set what applies to modules of exactly this class, or to calls of a function or tensor method.

        Of a function that is called in a module of the class it applies too, and wins over that of the
        function.

        Raises:
            SpecError: ``object_type`` is none of these.
        """
        _check_object_type(object_type)
        self.object_type_qconfigs[object_type] = _checked(qconfig)
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: QConfig | None) -> Self:
        """Set what applies to modules whose dotted name begins with what the expression matches.

        The first that matches applies, in the order in which they were set first; setting one again keeps
        its place.

        Raises:
            SpecError: it is no regular expression.
        """
        try:
            re.compile(module_name_regex)
        except (re.error, TypeError) as error:
            raise SpecError(
                f"{module_name_regex!r} is no regular expression: {error}",
                hint=r"write it as for re.match, dots as \.",
            ) from None
        self.module_name_regex_qconfigs[module_name_regex] = _checked(qconfig)
        return self

    def set_module_name(self, module_name: str, qconfig: QConfig | None) -> Self:
        """Set what applies to the module of a dotted name (``""`` for the whole model) and all in it, unless
        a longer name is set.
        """
        self.module_name_qconfigs[module_name] = _checked(qconfig)
        return self

    def set_module_name_object_type_order(
        self, module_name: str, object_type: ObjectType, index: int, qconfig: QConfig | None
    ) -> Self:
        """Set what applies to one call: the one of number ``index``, counted from 0, among calls of
        ``object_type`` directly in the module of name ``module_name`` (``""`` for the whole model).

        Raises:
            SpecError: ``object_type`` is none, or ``index`` is negative.
        """
        _check_object_type(object_type)
        if not isinstance(index, int) or index < 0:
            raise SpecError(f"the index of a call is {index!r}", hint="calls are counted from 0")
        self.module_name_object_type_order_qconfigs[module_name, object_type, index] = _checked(qconfig)
        return self

    @classmethod
    def from_dict(cls, qconfig_dict: Mapping[str, Any]) -> Self:
        """A mapping from what :meth:`to_dict` returns; all keys are optional.

        Raises:
            UnknownNameError: a key that there is not.
            SpecError: a value that is no list of tuples, or that a setter refuses.
        """
        known_keys("a QConfigMapping dictionary", qconfig_dict, ("", *_LISTS))
        mapping = cls().set_global(qconfig_dict.get(""))
        for key, length in _LISTS.items():
            for row in pairs_of(f"{key!r} of a QConfigMapping dictionary", qconfig_dict.get(key, []), length):
                getattr(mapping, f"set_{key}")(*row)
        return mapping

    def to_dict(self) -> dict[str, Any]:
        """A dictionary: ``""`` is the global QConfig, the others are lists of the arguments of setters.

        Their keys are ``object_type``, ``module_name_regex``, ``module_name`` and
        ``module_name_object_type_order``.
        """
        order = self.module_name_object_type_order_qconfigs
        return {
            "": self.global_qconfig,
            "object_type": list(self.object_type_qconfigs.items()),
            "module_name_regex": list(self.module_name_regex_qconfigs.items()),
            "module_name": list(self.module_name_qconfigs.items()),
            "module_name_object_type_order": [(*key, qconfig) for key, qconfig in order.items()],
        }


def _checked(qconfig: QConfig | None) -> QConfig | None:
    if qconfig is not None and not isinstance(qconfig, QConfig):
        raise SpecError(
            f"{qconfig!r} is no QConfig", hint="pass QConfig(activation=…, weight=…), or None for float"
        )
    return qconfig


def _check_object_type(object_type: object) -> None:
    if isinstance(object_type, torch.nn.Module) or not (
        callable(object_type) or isinstance(object_type, str)
    ):
        raise SpecError(
            f"the object type is {object_type!r}",
            hint="pass a module class, a torch function or the name of a tensor method",
        )
