"""Datasets, their checks, and training batches."""
