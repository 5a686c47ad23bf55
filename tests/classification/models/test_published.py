"""Published weights under our names; what is downloaded is made here."""

import re
from urllib.error import URLError

import pytest
import torch

from tr_det.classification.models.registry import build_model
from tr_det.classification.models.resnet_cifar import ResNetCIFAR


def their_name(key, blocks):
    """Return the name that a weight of ours has in the published files."""

    def place(found):
        return f"layer{int(found[1]) // blocks + 1}.{int(found[1]) % blocks}."

    return "module." + re.sub(r"^blocks\.(\d+)\.", place, key).replace("fc.", "linear.")


@pytest.mark.parametrize("depth", [20, 32])
def test_published_weights_are_loaded_by_name_and_the_last_norm_is_the_identity(monkeypatch, depth):
    trained = ResNetCIFAR(depth)
    for value in trained.state_dict().values():
        value.copy_(torch.rand(value.shape).mul(9).to(value.dtype))
    own = {k: v for k, v in trained.state_dict().items() if not k.startswith("bn2.")}
    stored = {
        their_name(key, (depth - 2) // 6): value
        for key, value in own.items()
        if "num_batches" not in key  # the files are older than that counter
    }
    asked = []

    def fetch(url, **_):
        asked.append(url.rpartition("/")[2])
        return {"state_dict": stored}

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    model = build_model("resnet_cifar", 10, pretrained=True, depth=depth)
    assert asked[0].startswith(f"resnet{depth}-")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in own.items() if "num_batches" not in k)
    features = torch.rand(4, 64)
    assert torch.allclose(model.eval().bn2(features), features, atol=1e-4)
    other = build_model("resnet_cifar", 3, pretrained=True, new_last_layer=True, depth=depth)
    assert torch.equal(other.conv1.weight, model.conv1.weight)
    assert other.fc.out_features == 3


@pytest.mark.parametrize("options", [{"depth": 8}, {"depth": 20, "width": 8}])
def test_networks_without_published_weights_are_refused(options):
    with pytest.raises(ValueError, match=r"weights='library': must be a checkpoint, but for"):
        build_model("resnet_cifar", 10, pretrained=True, **options)


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("no route: invalid hash")])
def test_where_nothing_can_be_fetched_a_checkpoint_is_asked_for(monkeypatch, error):
    def fetch(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(ValueError, match=r"weights='library': must be a checkpoint, as .*no route"):
        build_model("resnet_cifar", 10, pretrained=True, depth=20)
