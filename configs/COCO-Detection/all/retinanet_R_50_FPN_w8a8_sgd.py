"""RetinaNet ResNet-50, W8A8, SGD, protocol all."""

from tr_det.detection.lazy import retinanet_coco

model, dataloader, optimizer, lr_multiplier, train = retinanet_coco(
    depth=50, bits=8, optimizer="SGD", protocol="all"
)
