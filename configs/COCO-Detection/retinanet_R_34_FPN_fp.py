"""RetinaNet ResNet-34 in full precision."""

from tr_det.detection.lazy import retinanet_coco

model, dataloader, optimizer, lr_multiplier, train = retinanet_coco(depth=34)
