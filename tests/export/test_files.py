"""Exported files as networks."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.export import Dim

from tr_det.export.networks import RecordedNetwork
from tr_det.export.packed_file import read_packed


def test_a_size_that_was_not_recorded_is_one_line():
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.shape[2] > 4 else x

    sizes = {2: Dim.AUTO, 3: Dim.AUTO}
    images = torch.zeros(1, 3, 8, 8)
    program = torch.export.export(Branches(), (images,), dynamic_shapes=(sizes,))
    network = RecordedNetwork(program.module(), ("y",))
    assert (network.run({"images": images.numpy()})["y"] == 1).all()
    with pytest.raises(ValueError, match="input of 3 x 6 px"):
        network.run({"images": np.zeros((1, 3, 3, 6), np.float32)})


@pytest.mark.parametrize(
    "text", ["{oops", "[]", '{"format": "packed", "version": 1, "layers": 3, "shared": {}}']
)
def test_a_packed_file_with_broken_metadata_is_one_line(tmp_path, text):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3)}, path, metadata={"tr_det": text})
    with pytest.raises(ValueError, match=r"model\.safetensors: (metadata|damaged): "):
        read_packed(path)
