"""Property tests of graph passes: generated graphs, and laws that hold of every pass.

::

    from lowbit.tools.testing import laws

    def test_my_pass():
        laws.check(MyPass())

Needs hypothesis: ``pip install 'lowbit[testing]'``.
"""

import importlib.util

from ...errors import MissingDependencyError

if importlib.util.find_spec("hypothesis") is None:
    raise MissingDependencyError(
        "lowbit.tools.testing needs hypothesis, which is not installed",
        hint="pip install 'lowbit[testing]'",
    )

# Everything below imports hypothesis.
from . import laws
from .illegal import FAULTS, IllegalQuantizer
from .laws import LAWS, Law, LawBroken, check, check_on
from .programs import Program, Step, build
from .quantizing import Choices, DrawnQuantizer
from .strategies import (
    Dynamic,
    NearMiss,
    choices,
    dynamic_modules,
    illegal_quantizers,
    near_misses,
    per_channel_specs,
    per_tensor_specs,
    pipelines,
    programs,
    quantizers,
    shapes,
    steps,
    subjects,
)
from .subjects import Subject

__all__ = [
    "FAULTS",
    "LAWS",
    "Choices",
    "DrawnQuantizer",
    "Dynamic",
    "IllegalQuantizer",
    "Law",
    "LawBroken",
    "NearMiss",
    "Program",
    "Step",
    "Subject",
    "build",
    "check",
    "check_on",
    "choices",
    "dynamic_modules",
    "illegal_quantizers",
    "laws",
    "near_misses",
    "per_channel_specs",
    "per_tensor_specs",
    "pipelines",
    "programs",
    "quantizers",
    "shapes",
    "steps",
    "subjects",
]
