"""What torch.export records against the model itself."""

import pytest
import torch
from torch import nn

from tr_det.classification.models.resnet_cifar import ResNetCIFAR
from tr_det.core import QUANTIZERS, QuantConfig, quantize_model, set_scales
from tr_det.export.simulation import read_simulation, write_simulation


def ready(model, example, **config):
    torch.manual_seed(0)
    quantize_model(model, QuantConfig(**config))
    set_scales(model, lambda: model(example))
    return model.eval()


def test_a_residual_network_at_other_sizes(tmp_path):
    path, example = tmp_path / "model.pt2", torch.rand(2, 3, 16, 24)
    model = ready(ResNetCIFAR(8, 3, width=4), example, signed_input=True)
    write_simulation(model, example, path, {"classes": ["a", "b"]})
    loaded, metadata = read_simulation(path)
    assert metadata == {"classes": ["a", "b"], "format": "torch", "version": 1}
    for shape in ((2, 3, 16, 24), (1, 3, 16, 24), (5, 3, 33, 18)):
        images = torch.randn(shape)
        assert torch.equal(loaded(images), model(images))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_quantizer(name, tmp_path):
    path, example = tmp_path / "model.pt2", torch.rand(2, 4)
    part = {"weight": "weight", "input": "act"}[QUANTIZERS[name].roles[0]]
    both = {"weight_quantizer": name, "act_quantizer": name}
    config = both if len(QUANTIZERS[name].roles) == 2 else {f"{part}_quantizer": name}
    model = ready(nn.Linear(4, 3), example, weight_bits=2, **config)
    write_simulation(nn.Sequential(model).eval(), example, path, {})
    loaded, _ = read_simulation(path)
    assert torch.equal(loaded(example[:1]), model(example[:1]))


class BackboneAndHead(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        features = self.model.backbone(x)
        return self.model.head([features[name] for name in self.model.head_in_features])


@pytest.mark.slow
def test_a_detectors_backbone_and_head(make_config, tmp_path):
    from detectron2.modeling import build_model

    path, example = tmp_path / "model.pt2", torch.randn(2, 3, 256, 384)
    torch.manual_seed(0)
    cfg = make_config("MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CONVS", 1)
    model = BackboneAndHead(build_model(cfg)).eval()
    set_scales(model, lambda: model(example))
    write_simulation(model, example, path, {})
    loaded, _ = read_simulation(path)
    for shape in ((2, 3, 256, 384), (1, 3, 512, 256)):
        images = torch.randn(shape)
        for expected, found in zip(model(images), loaded(images), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_what_cannot_be_recorded_leaves_no_file(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    path, example = tmp_path / "model.pt2", torch.rand(2, 2)
    fresh = nn.Sequential(nn.Linear(2, 2)).eval()
    quantize_model(fresh, QuantConfig())
    for model, images, message in (
        (nn.Linear(2, 2), example, "no quantized layers"),
        (fresh, example, "no scale yet"),
        (ready(nn.Sequential(nn.Linear(2, 2)), example).train(), example, "training mode"),
        (ready(nn.Sequential(nn.Linear(2, 2)), example), example[:1], "at least 2"),
        (ready(Branches(), example), example, "cannot record Branches"),
    ):
        with pytest.raises(ValueError, match=message):
            write_simulation(model, images, path, {})
    assert not any(tmp_path.iterdir())


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path, example = tmp_path / "model.pt2", torch.rand(2, 2)
    with pytest.raises(ValueError, match="no such file"):
        read_simulation(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="damaged"):
        read_simulation(path)
    torch.export.save(torch.export.export(nn.Linear(2, 2), (example,)), path)
    with pytest.raises(ValueError, match="must be 'torch'"):
        read_simulation(path)
