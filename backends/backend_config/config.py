"""What a backend can run in low precision, in the words of PyTorch's handbook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs

from ...errors import SpecError
from .checks import known_keys
from .pattern_config import BackendPatternConfig, nested_pattern

__all__ = ["BackendConfig"]


@attrs.define(eq=False)
class BackendConfig:
    """The patterns that a backend runs in low precision, by name of the backend.

    ::

        backend_config = BackendConfig("my_backend").set_backend_pattern_config(linear_config)
        prepared = prepare_fx(model, qconfig_mapping, example_inputs, backend_config=backend_config)

    Args:
        name: the name of the backend.
    """

    name: str = ""
    _configs: dict[Any, BackendPatternConfig] = attrs.field(
        factory=dict[Any, BackendPatternConfig], init=False
    )

    @property
    def configs(self) -> list[BackendPatternConfig]:
        """The configs, in the order in which their patterns were first set; a new list."""
        return list(self._configs.values())

    def set_name(self, name: str) -> Self:
        """Set the name of the backend."""
        self.name = name
        return self

    def set_backend_pattern_config(self, config: BackendPatternConfig) -> Self:
        """Set the config of a pattern, in place of the one it had.

        Raises:
            SpecError: ``config`` is no BackendPatternConfig.
            PatternError: it has no pattern.
        """
        if not isinstance(config, BackendPatternConfig):
            raise SpecError(
                f"{config!r} is no BackendPatternConfig", hint="pass BackendPatternConfig(pattern)"
            )
        self._configs[nested_pattern(config)] = config
        return self

    def set_backend_pattern_configs(self, configs: Iterable[BackendPatternConfig]) -> Self:
        """Set the configs of several patterns; see :meth:`set_backend_pattern_config`."""
        for config in configs:
            self.set_backend_pattern_config(config)
        return self

    @classmethod
    def from_dict(cls, backend_config_dict: Mapping[str, Any]) -> Self:
        """A config from a dictionary with the keys ``name`` and ``configs``, a list of dictionaries.

        Raises:
            UnknownNameError: another key, there or in one of the configs.
            SpecError, PatternError: a value that a setter refuses.
        """
        known_keys("a BackendConfig dictionary", backend_config_dict, ("name", "configs"))
        return cls(backend_config_dict.get("name", "")).set_backend_pattern_configs(
            BackendPatternConfig.from_dict(each) if isinstance(each, Mapping) else each
            for each in backend_config_dict.get("configs", ())
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that :meth:`from_dict` takes."""
        return {"name": self.name, "configs": [config.to_dict() for config in self.configs]}
