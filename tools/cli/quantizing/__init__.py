"""What ``lowbit quantize`` does, as a function of its options."""

from .config_file import read_config
from .flow import QuantizeResult, quantize
from .options import OPTION_NAMES, QuantizeOptions, make_options

__all__ = ["OPTION_NAMES", "QuantizeOptions", "QuantizeResult", "make_options", "quantize", "read_config"]
