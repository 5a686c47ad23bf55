"""The installer of Detectron2."""
