import pytest
import torch
from torch import nn

from tr_det.core import QuantConfig, quantize_model, set_scales
from tr_det.export.recording import record


class Flat(nn.Module):
    def __init__(self, branches=False) -> None:
        super().__init__()
        self.conv, self.branches = nn.Conv2d(3, 4, 3), branches

    def forward(self, x):
        if self.branches and x.sum() > 0:
            return x
        return self.conv(x).reshape(x.shape[0], -1)


def quantized(net, images=None):
    images = torch.rand(2, 3, 8, 8)
    quantize_model(net, QuantConfig(output_scale="always"))
    set_scales(net, lambda: net(images))
    return net.eval()


def test_any_number_of_images_can_follow() -> None:
    net = quantized(Flat())
    program = record(net, torch.rand(2, 3, 8, 8)).module()
    for shape in ((3, 3, 12, 9), (5, 3, 8, 8)):
        images = torch.rand(shape)
        assert torch.equal(program(images), net(images))


@pytest.mark.parametrize(
    ("net", "shape", "reason"),
    [
        (Flat(), (1, 3, 8, 8), r"\(1, 3, 8, 8\).*at least 2"),
        (Flat(branches=True), (2, 3, 8, 8), "torch.export cannot record Flat"),
    ],
)
def test_what_holds_for_one_example_only_is_refused(net, shape, reason) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        record(quantized(net), torch.rand(shape))
    assert "\n" not in str(error.value)
