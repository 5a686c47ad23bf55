import pytest
import torch

from tr_det.classification import ResNetCIFAR


def test_strides_quarter_the_image_and_padding_keeps_the_old_channels():
    block = ResNetCIFAR(8, in_channels=1, width=4).blocks[1].eval()
    torch.nn.init.zeros_(block.bn2.weight)  # the branch gives zero: what is left is the shortcut
    x = torch.rand(2, 4, 8, 8)
    out = block(x)
    assert out.shape == (2, 8, 4, 4)
    torch.testing.assert_close(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, [0, 1, 6, 7]].abs().max() == 0


@pytest.mark.parametrize("depth", [2, 10, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth={depth}: must be 6n"):
        ResNetCIFAR(depth)
