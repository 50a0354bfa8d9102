"""All there is to test: what the declarations promise."""

from lowbit.backends import get_backend
from lowbit.tools.conformance import conformance_test

test_conformance = conformance_test(get_backend("fictional_accelerator"))
