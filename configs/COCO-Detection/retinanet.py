"""RetinaNet on COCO for Detectron2's lazyconfig_train_net.py; W4A4 with SGDT unless overridden.

On the command line:
    model.backbone.bottom_up.stages.depth=18                  or 34, 50
    model.quant.weight_bits=3 model.quant.act_bits=3          1 to 8
    model.quant.protocol=all                                  first and last layers at 8 bits
    optimizer.name=SGD                                        plain SGD
    model.quant.enabled=False optimizer.name=SGD              full precision: run it first
"""

from tr_det.detection.lazy import coco_loaders, cosine, retinanet, sgd, train_options

model = retinanet()
dataloader = coco_loaders()
optimizer = sgd()
lr_multiplier = cosine()
train = train_options()
