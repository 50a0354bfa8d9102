"""The quantizer of a backend that is declared by operator patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch.fx import GraphModule

from ..errors import UnsupportedError
from ..ir.bodies import is_body
from ..ir.ledger import Ledger
from ..ir.quantizer import Quantizer
from ..ir.specs import QuantizationConfig
from ..matchers.operator_pattern import OperatorPattern, Refusal
from .annotation import annotate_patterns
from .by_hand import ByHand
from .capabilities import Capabilities
from .registry import get_backend
from .selection import ConfigSelection

__all__ = ["PatternQuantizer"]


class PatternQuantizer(Quantizer):
    """Annotates what ``patterns`` describe, with the configurations that were set.

    ::

        class MyQuantizer(PatternQuantizer):
            backend_name = "my_backend"
            patterns = (OperatorPattern("linear", …), …)

        quantizer = MyQuantizer().set_global(config).set_module_name("head", None)  # head stays float

    A module name wins over a module type, that over a function type, and that over the global configuration.
    None leaves the operators selected float. A setting that selects no operator of the model is an error when
    the model is prepared; one that decides about nothing that could be quantized is a warning.
    """

    backend_name: ClassVar[str | None] = None
    """The registered backend that models prepared with it are for."""
    patterns: ClassVar[tuple[OperatorPattern, ...]] = ()
    by_hand: ClassVar[tuple[ByHand, ...]] = ()
    """What is annotated without a pattern, before the patterns."""
    left_float: ClassVar[Mapping[Any, Refusal]] = {}
    """Why the backend has no pattern for an operator, where that is worth more than ``no-pattern``."""
    fuses_pointwise: ClassVar[bool] = False
    """Whether its compiler fuses pointwise operators that stay float with what is around them."""

    def __init__(self) -> None:
        self._selection = ConfigSelection()
        self._ledger = Ledger()

    def set_global(self, quantization_config: QuantizationConfig | None) -> Self:
        """Quantize every operator that the backend can run with this configuration.

        Raises:
            SpecError: it is no configuration, or mixes static with dynamic, or training with post-training
                quantization.
        """
        self._selection.set_global(quantization_config)
        return self

    def set_function_type(
        self, function_type: Callable[..., Any], quantization_config: QuantizationConfig | None
    ) -> Self:
        """Set the configuration of a function (``torch.nn.functional.linear``), called from modules or not.

        Raises:
            SpecError: see :meth:`set_global`.
            UnknownNameError: ``function_type`` is not a torch function.
        """
        self._selection.set_function_type(function_type, quantization_config)
        return self

    def set_module_type(
        self, module_type: type[torch.nn.Module], quantization_config: QuantizationConfig | None
    ) -> Self:
        """Set the configuration of everything in modules of a class (``torch.nn.Linear``, one of your own).

        Raises:
            SpecError: see :meth:`set_global`.
        """
        self._selection.set_module_type(module_type, quantization_config)
        return self

    def set_module_name(self, module_name: str, quantization_config: QuantizationConfig | None) -> Self:
        """Set the configuration of everything in the module of a dotted name (``layer1.0.conv1``).

        Raises:
            SpecError: see :meth:`set_global`.
        """
        self._selection.set_module_name(module_name, quantization_config)
        return self

    @property
    def is_qat(self) -> bool | None:
        """Whether it is set up for training; None where nothing that is says so, as weights alone do not."""
        return self._selection.is_qat

    def quantization_capabilities(self) -> Capabilities:
        """What its backend can quantize, whatever is configured.

        Raises:
            UnsupportedError: it is of no backend.
        """
        if self.backend_name is None:
            raise UnsupportedError(
                f"{type(self).__name__} is of no backend, which is what a table of capabilities is of",
                hint="register a Backend, and name it in backend_name",
            )
        return get_backend(self.backend_name).capabilities()

    def bind_ledger(self, ledger: Ledger) -> None:
        """Write decisions to ``ledger``."""
        self._ledger = ledger

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the operators that the patterns describe, and what is annotated by hand.

        Raises:
            UnknownNameError: a setting selects no operator; the hint has the nearest names.

        Warns with IneffectiveSettingWarning of settings that decide about nothing that could be quantized.
        """
        selection, graph = self._selection, model.graph
        selection.begin(self._ledger)
        if not is_body(model):
            selection.check_selectors(model)
        for each in self.by_hand:
            each.annotate(graph, selection.of, self._ledger)
        annotate_patterns(
            graph,
            self.patterns,
            selection.of,
            self._ledger,
            self.left_float,
            fuses_pointwise=self.fuses_pointwise,
            why_none=selection.why_none,
        )
        if not is_body(model):
            selection.warn_of_idle_selectors(model)
        return model
