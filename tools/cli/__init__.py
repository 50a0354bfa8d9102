"""The command line, and what ``lowbit quantize`` does as a function."""

from .entry import main
from .quantizing import QuantizeOptions, QuantizeResult, quantize, read_config

__all__ = ["QuantizeOptions", "QuantizeResult", "main", "quantize", "read_config"]
