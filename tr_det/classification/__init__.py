"""The classification companion: models and data on the same core. Never imports detectron2."""

from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.digits.images import DigitImages, load_digit_images

__all__ = ["DigitImages", "ResNetCIFAR", "load_digit_images"]
