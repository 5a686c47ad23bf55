"""Checkpoints of detectors, also of other projects."""
