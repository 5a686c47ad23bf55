"""Datasets by name, and batches."""
