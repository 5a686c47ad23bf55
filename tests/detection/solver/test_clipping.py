import pytest
import torch
from detectron2.solver.build import maybe_add_gradient_clipping

from tr_det.detection import build_optimizer


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_what_is_built_clips_each_gradient_as_detectron2_does(make_config, kind):
    cfg = make_config("SOLVER.OPTIMIZER", "SGD", "SOLVER.WEIGHT_DECAY", 0.0)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = kind, 0.1

    def theirs(model):
        with_gradient = list(model.parameters())[:3]  # Detectron2's needs one of each
        return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            with_gradient, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM
        )

    def trained(build, enabled=True):
        torch.manual_seed(0)
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = enabled
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5))
        optimizer = build(model)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        model[1].bias.grad = None
        optimizer.step()
        return [p.detach() for p in model.parameters()]

    clipped = trained(lambda model: build_optimizer(cfg, model))
    expected = trained(theirs)
    unclipped = trained(lambda model: build_optimizer(cfg, model), enabled=False)
    assert all(map(torch.equal, clipped, expected))
    assert not any(map(torch.equal, clipped[:3], unclipped))
