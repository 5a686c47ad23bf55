"""Frozen norms as trained ones: the same function, with statistics that training goes on from."""

import logging

import pytest
import torch
import unfold_norms as tool
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from tr_det.detection import QuantCheckpointer, QuantTrainer
from tr_det.detection.modeling.unfold import folded_norms, unfold_norms

FROZEN = ("MODEL.QUANT.ENABLED", False, "MODEL.RESNETS.NORM", "FrozenBN")


def folded(cfg):
    """Return a detector as the model zoo's: frozen norms with statistics 0 and 1."""
    torch.manual_seed(0)
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.copy_(torch.randn(module.num_features, generator=generator))
    return model.eval()


def backbone(model, x):
    with torch.no_grad():
        return model.backbone.bottom_up(x)["res5"]


def test_the_function_stays_and_training_computes_it_too(make_config):
    cfg = make_config(*FROZEN, "INPUT.RANDOM_FLIP", "none")
    model = folded(cfg)
    loader = QuantTrainer.build_train_loader(cfg)
    batch = next(iter(loader))
    images = model.preprocess_image(batch).tensor
    before = backbone(model, images)
    norms = len(folded_norms(model.state_dict()))
    assert norms > 10
    assert unfold_norms(model, [batch], 1) == norms
    assert folded_norms(model.state_dict()) == []
    torch.testing.assert_close(backbone(model, images), before, rtol=1e-3, atol=1e-3)

    trained = build_model(make_config("MODEL.QUANT.ENABLED", False, "MODEL.RESNETS.NORM", "BN"))
    trained.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(backbone(trained.train(), images), before, rtol=1e-2, atol=1e-2)
    plain = build_model(make_config("MODEL.QUANT.ENABLED", False, "MODEL.RESNETS.NORM", "BN"))
    plain.load_state_dict(folded(cfg).state_dict(), strict=False)
    assert (backbone(plain.train(), images) - before).abs().mean() > before.abs().mean() / 2


def test_the_tool_writes_what_trained_norms_load(make_config, tmp_path, caplog):
    cfg = make_config(*FROZEN)
    torch.save({"model": folded(cfg).state_dict()}, tmp_path / "zoo.pth")
    (tmp_path / "config.yaml").write_text(make_config().dump())
    out = str(tmp_path / "out.pth")
    tool.unfold(out, str(tmp_path / "config.yaml"), 2, ["MODEL.WEIGHTS", str(tmp_path / "zoo.pth")])
    model = build_model(make_config("MODEL.RESNETS.NORM", "BN"))
    with caplog.at_level(logging.WARNING):
        QuantCheckpointer(model).load(out)
        assert "frozen norms" not in caplog.text
        QuantCheckpointer(model).load(str(tmp_path / "zoo.pth"))
    assert "running statistics of 0 and 1, as models trained with frozen norms" in caplog.text


def test_a_model_that_was_never_trained_is_not_taken_for_a_folded_one(make_config):
    assert folded_norms(build_model(make_config()).state_dict()) == []


def test_no_batches_are_refused(make_config):
    with pytest.raises(ValueError, match="num_batches=0: must be at least 1"):
        unfold_norms(torch.nn.Linear(1, 1), [], 0)
