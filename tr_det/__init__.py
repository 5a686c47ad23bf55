"""Low-bit quantization-aware training of detectors inside Detectron2."""

__version__ = "0.1.0"
