"""How the suite runs property tests."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples in every run: a change is judged by what it changes. `make nightly` looks for new ones.
settings.register_profile("default-suite", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("nightly", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default-suite"))
