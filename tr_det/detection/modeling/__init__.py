"""Quantized backbones and detectors, and what they cost."""
