import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping

from tr_det import core
from tr_det.detection import QuantTrainer, build_optimizer
from tr_det.detection.solver.methods import clip_from


@pytest.fixture
def clipping(make_config):
    """Return ``make(type) -> cfg`` with clipping on."""
    key = "SOLVER.CLIP_GRADIENTS"
    return lambda kind: make_config(
        f"{key}.ENABLED", True, f"{key}.CLIP_TYPE", kind, f"{key}.CLIP_VALUE", 0.1
    )


def parameters():
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_it_clips_as_detectron2_does(clipping, kind):
    ours, theirs = parameters(), parameters()
    clip_from(clipping(kind))(ours)
    torch.optim.SGD(ours, lr=1.0).step()
    maybe_add_gradient_clipping(clipping(kind), torch.optim.SGD)(theirs, lr=1.0).step()
    unclipped = parameters()
    torch.optim.SGD(unclipped, lr=1.0).step()
    for a, b, c in zip(ours, theirs, unclipped, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert not torch.equal(a, c)


def test_what_is_built_clips_each_gradient_that_there_is(clipping, storage):
    cfg = clipping("value")
    cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0, 0.01
    model = build_model(cfg)
    batch = next(iter(QuantTrainer.build_train_loader(cfg)))
    core.set_scales(model, lambda: model(batch))
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, core.SGDT)
    weight = model.backbone.bottom_up.res2[0].conv1.weight
    before = weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    model.head.cls_score.bias.grad = None
    optimizer.step()
    moved = (before - weight).abs().max().item()
    group = next(g for g in optimizer.param_groups if g["params"][0] is weight)
    decay = cfg.SOLVER.WEIGHT_DECAY * before.abs().max().item()
    assert 0 < moved <= group["talr"].item() * (0.01 + decay) * 1.01
