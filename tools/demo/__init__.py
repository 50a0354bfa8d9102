"""The demonstration: a model trained on real data, quantized by passes, and what that gained."""
