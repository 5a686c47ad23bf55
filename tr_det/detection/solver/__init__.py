"""Optimizers, gradient clipping, methods and their curves."""
