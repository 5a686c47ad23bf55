"""RetinaNet ResNet-18, W3A3, SGD, protocol paper."""

from tr_det.detection.lazy import retinanet_coco

model, dataloader, optimizer, lr_multiplier, train = retinanet_coco(
    depth=18, bits=3, optimizer="SGD"
)
