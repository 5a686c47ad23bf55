import pytest
import torch
from detectron2.solver.build import maybe_add_gradient_clipping

from tr_det import core
from tr_det.detection import QuantTrainer
from tr_det.detection.solver.clipping import clip_from


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


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_it_works_through_the_trainer_with_a_parameter_that_gets_no_gradient(clipping, kind):
    cfg = clipping(kind)
    cfg.DATASETS.TEST = ()

    class Trainer(QuantTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.unused = torch.nn.Parameter(torch.ones(2))
            return model

    trainer = Trainer(cfg)
    assert isinstance(trainer.optimizer, core.SGDT)
    trainer.train()
    assert trainer.iter == 4
    assert trainer.model.unused.tolist() == [1, 1]


def test_another_kind_is_refused(clipping):
    with pytest.raises(ValueError, match=r"CLIP_TYPE='full': must be one of \['norm', 'value'\]"):
        clip_from(clipping("full"))
