import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from tr_det.core import quantized_layers, set_scales
from tr_det.detection import QuantRetinaNet


def batch(height=64, width=64, count=2, objects=2):
    """Return inputs in Detectron2's format, with random images."""
    inputs = []
    for _ in range(count):
        target = Instances((height, width))
        corners = torch.rand(objects, 2) * 20
        target.gt_boxes = Boxes(torch.cat([corners, corners + 15], dim=1))
        target.gt_classes = torch.arange(objects)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "instances": target, "height": height, "width": width})
    return inputs


def calibrated(cfg, inputs=None):
    """Return a model in training mode with its scales set."""
    model = build_model(cfg)
    inputs = inputs or batch()
    set_scales(model, lambda: model(inputs))
    return model


def loss_of(model, inputs):
    return sum(model(inputs).values())


def test_one_training_step_reaches_every_trainable_parameter(make_config, storage):
    torch.manual_seed(0)
    model = calibrated(make_config())
    loss_of(model, batch()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("focal_loss_gamma", -1.0),
        ("smooth_l1_beta", -0.1),
        ("max_detections_per_image", -1),
        ("test_nms_thresh", float("nan")),
        ("num_classes", None),
    ],
)
def test_a_lazyconfigs_values_are_checked_like_a_yamls(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}={value}: must be "):
        QuantRetinaNet(**{argument: value})


def test_an_unsigned_grid_on_a_signed_input_is_refused_by_name(make_config, storage):
    cfg = make_config("MODEL.QUANT.RULES", ["*fpn_output4 signed_input=False"])
    with pytest.raises(ValueError, match=r"fpn_output4\.input_quantizer: the input has negative"):
        calibrated(cfg)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 91), (33, 200)])
def test_odd_sizes_and_images_without_objects_train_and_evaluate(
    make_config, storage, height, width
):
    inputs = batch(height, width, objects=0)
    model = calibrated(make_config(), inputs)
    losses = model(inputs)
    assert all(torch.isfinite(value) for value in losses.values())
    model.eval()
    with torch.no_grad():
        out = model(batch(height, width, count=1))
    assert out[0]["instances"].image_size == (height, width)


def test_in_full_precision_it_is_detectron2s_retinanet(make_config, storage):
    cfg = make_config("MODEL.QUANT.ENABLED", False, "MODEL.QUANT.HEAD_INPUT_RELU", False)
    ours = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    theirs = build_model(cfg)
    theirs.load_state_dict(ours.state_dict())
    inputs = batch()
    expected, got = theirs(inputs), ours(inputs)
    assert set(expected) == set(got) == {"loss_cls", "loss_box_reg"}
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=0)


def test_a_training_step_quantizes_each_weight_once_with_the_losses_of_five_times(
    make_config, storage
):
    torch.manual_seed(0)
    inputs = batch()
    model = calibrated(make_config(), inputs)
    calls = []
    for name, layer in quantized_layers(model):
        layer.weight_quantizer.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.loss_normalizer = 100
    losses = model(inputs)
    assert sorted(calls) == sorted(name for name, _ in quantized_layers(model))
    model.loss_normalizer = 100
    plain = super(type(model), model).forward(inputs)
    assert len(calls) > 2 * len(list(quantized_layers(model)))  # the head ran on five levels
    assert all(torch.equal(losses[key], plain[key]) for key in losses)
