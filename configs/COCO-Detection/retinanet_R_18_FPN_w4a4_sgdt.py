"""RetinaNet ResNet-18, W4A4, SGDT, protocol paper."""

from tr_det.detection.lazy import retinanet_coco

model, dataloader, optimizer, lr_multiplier, train = retinanet_coco(
    depth=18, bits=4, optimizer="SGDT"
)
