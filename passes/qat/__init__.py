"""Passes of quantization-aware training."""
