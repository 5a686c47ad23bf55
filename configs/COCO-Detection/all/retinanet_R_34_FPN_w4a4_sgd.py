"""RetinaNet ResNet-34, W4A4, SGD, protocol all."""

from tr_det.detection.lazy import retinanet_coco

model, dataloader, optimizer, lr_multiplier, train = retinanet_coco(
    depth=34, bits=4, optimizer="SGD", protocol="all"
)
