"""Labelled images in common formats -> COCO files with a fixed split, checked."""
