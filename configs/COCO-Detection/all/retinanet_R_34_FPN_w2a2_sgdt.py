"""RetinaNet ResNet-34, W2A2, SGDT, protocol all."""

from tr_det.detection.lazy import retinanet_coco

model, dataloader, optimizer, lr_multiplier, train = retinanet_coco(
    depth=34, bits=2, optimizer="SGDT", protocol="all"
)
