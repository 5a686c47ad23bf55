"""Quantized layers, the rules that select them, and the conversion of a model."""
