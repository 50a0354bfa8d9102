"""Every backend of the house is what its declarations say."""

from __future__ import annotations

from lowbit.backends import get_backend
from lowbit.tools.conformance import conformance_test

test_x86_inductor = conformance_test(get_backend("x86_inductor"))
test_xpu_inductor = conformance_test(get_backend("xpu_inductor"))
test_xnnpack = conformance_test(get_backend("xnnpack"))
test_arm_inductor = conformance_test(get_backend("arm_inductor"))
test_embedding = conformance_test(get_backend("embedding"))
