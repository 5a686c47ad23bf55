"""The bit-packed file against the model that it was written from."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from tr_det.core import (
    QUANTIZERS,
    ConfigError,
    QuantConfig,
    QuantRule,
    quantize_model,
    quantized_layers,
    set_scales,
)
from tr_det.export.packed import load_packed, write_packed
from tr_det.export.packed_file import read_packed

IMAGES = torch.rand(3, 3, 9, 8, generator=torch.Generator().manual_seed(5))


def network(config, seed=0, width=6):
    """Return a small network in evaluation, without scales."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4, (1, 3), groups=2),
        nn.Sequential(nn.ReLU(), nn.Flatten()),
        nn.Linear(4 * 7 * 4, 5),
    )
    with torch.no_grad():  # channels differ
        model[0].weight.mul_(torch.linspace(0.2, 3.0, width).view(-1, 1, 1, 1))
        model[1].running_mean.normal_()
    quantize_model(model, config)
    return model.eval()


def ready(config, **sizes):
    model = network(config, **sizes)
    set_scales(model, lambda: model(IMAGES))
    return model


def configs(name):
    """Yield the name's weight quantizer at all widths and scales that it has."""
    act = name if "input" in QUANTIZERS[name].roles else "fixed_grid"
    for bits in range(1, 9):
        for per_channel in (False, True):
            try:
                yield QuantConfig(
                    weight_quantizer=name,
                    act_quantizer=act,
                    weight_bits=bits,
                    act_bits=max(bits, 2),
                    weight_options={"per_channel": per_channel},
                )
            except ConfigError:
                continue


def check_same(loaded, model, path):
    """Assert the same outputs, codes, levels and state, in the model and in what numpy reads."""
    file = read_packed(path)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    state = loaded.state_dict()
    for (name, layer), (_, other) in zip(
        quantized_layers(model), quantized_layers(loaded), strict=True
    ):
        codes = layer.weight_quantizer.codes(layer.weight)
        assert torch.equal(other.weight_quantizer.codes(other.weight), codes)
        assert np.array_equal(file.weights[name].codes, codes.numpy())
        assert file.weights[name].codes.dtype == codes.numpy().dtype
        quantized = layer.quantized_weight().detach().numpy()
        assert np.array_equal(file.weights[name].values(), quantized)
    latent = {f"{name}.weight" for name in file.weights}
    for key, value in model.state_dict().items():
        if key not in latent and not key.endswith("held"):
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", [n for n in sorted(QUANTIZERS) if "weight" in QUANTIZERS[n].roles])
def test_every_weight_quantizer_comes_back_to_the_bit(name, tmp_path):
    path = tmp_path / "model.safetensors"
    tried = 0
    for config in configs(name):
        model, loaded = ready(config), network(config, seed=1)
        write_packed(model, path, {})
        load_packed(loaded, path)
        check_same(loaded, model, path)
        assert all(layer.weight_quantizer.held is None for _, layer in quantized_layers(loaded))
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lsbq", {"own_signs": True}),  # codes do not ascend with the weight
        ("uniform", {"center": True, "grid": "half", "per_channel": True}),
        ("uniform", {"grid": "narrow"}),
        ("lsq", {"initial": "mse", "per_channel": True}),
        ("qil", {"learn_gamma": False}),
    ],
)
@pytest.mark.parametrize("bits", [3, 5])
def test_options_come_back_too(name, options, bits, tmp_path):
    path = tmp_path / "model.safetensors"
    config = QuantConfig(
        weight_quantizer=name, weight_bits=bits, weight_options=options, signed_input=True
    )
    model, loaded = ready(config), network(config, seed=1)
    write_packed(model, path, {})
    load_packed(loaded, path)
    check_same(loaded, model, path)


def test_held_weights_and_extreme_parameters(tmp_path):
    path = tmp_path / "model.safetensors"
    config = QuantConfig(weight_quantizer="qil", signed_input=True)
    model, loaded = ready(config), network(config, seed=1)
    with torch.no_grad():
        for _, layer in quantized_layers(model):
            quantizer = layer.weight_quantizer
            quantizer.hold(torch.rand(layer.weight.shape) < 0.5, torch.full(layer.weight.shape, 3))
            quantizer.center.mul_(0.3)  # below the half length: some codes have no weight
            quantizer.gamma.fill_(2.0)
        held = loaded[0].weight_quantizer
        held.hold(
            torch.ones(loaded[0].weight.shape, dtype=torch.bool), torch.ones(loaded[0].weight.shape)
        )
    write_packed(model, path, {})
    load_packed(loaded, path)
    check_same(loaded, model, path)


def test_codes_that_no_weight_has_are_held_or_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for bits in (7, 8):
        config = QuantConfig(weight_quantizer="qnet", weight_bits=bits, signed_input=True)
        model, loaded = ready(config), network(config, seed=1)
        quantizer, shape = model[3].weight_quantizer, model[3].weight.shape
        with torch.no_grad():  # one threshold: few codes are left
            quantizer.biases[5:] = quantizer.biases[5].clone()
        if bits == 7:
            quantizer.hold(torch.rand(shape) < 0.5, torch.full(shape, 20))
        write_packed(model, path, {})
        if bits == 8:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
            tensors = load_file(path)
            for planes, message in ((32, "layer '3': 8 of its 36 codes"), (255, "damaged")):
                tensors["3.weight:codes"][:, 0] = [255 * (planes >> j & 1) for j in range(8)]
                save_file(tensors, path, metadata=metadata)
                with pytest.raises(ValueError, match=message):
                    load_packed(loaded, path)
        else:
            load_packed(loaded, path)
            check_same(loaded, model, path)


class Tied(nn.Module):
    """Two quantized layers and one in full precision with one weight, and a layer of two names."""

    def __init__(self, factor):
        super().__init__()
        self.first, self.second, self.plain = (nn.Linear(6, 6) for _ in range(3))
        self.alone, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.alone.weight
        self.again = self.alone
        self.second.weight = self.first.weight
        if factor:
            self.plain.weight = self.first.weight
        self.plain.bias = self.first.bias
        quantize_model(
            self,
            QuantConfig(
                weight_quantizer="lsq",
                signed_input=True,
                rules=(QuantRule(pattern="plain", skip=True),),
            ),
        )

    def forward(self, x):
        for layer in (self.first, self.second, self.plain, self.alone, self.other, self.again):
            x = layer(x)
        return x


@pytest.mark.parametrize("factor", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_shared_weights_are_stored_once(factor, scale, tmp_path):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model, loaded = Tied(factor).eval(), Tied(factor).eval()
    x = torch.randn(4, 6)
    set_scales(model, lambda: model(x))
    with torch.no_grad():  # with other scales one weight has other codes
        model.second.weight_quantizer.scale.mul_(scale)
        model.other.weight_quantizer.scale.mul_(scale)
    write_packed(model, path, {})
    load_packed(loaded, path)
    assert torch.equal(loaded(x), model(x))
    assert loaded.first.weight is loaded.second.weight
    assert all(layer.weight_quantizer.held is None for _, layer in quantized_layers(loaded))
    keys = load_file(path).keys()
    assert sum(key.endswith("weight:codes") for key in keys) == (2 if scale == 1 else 4)
    assert "first.weight" in keys or "plain.weight" in keys
    assert ("first.bias" in keys) != ("plain.bias" in keys)


def test_weights_that_are_shared_in_another_way_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model = Tied(0).eval()
    set_scales(model, lambda: model(torch.randn(4, 6)))
    write_packed(model, path, {})
    with pytest.raises(ValueError, match="is shared with others"):
        load_packed(Tied(1).eval(), path)


def test_metadata_is_kept_and_layers_are_described(tmp_path):
    path = tmp_path / "model.safetensors"
    config = QuantConfig(
        weight_bits=3, act_bits=32, rules=(QuantRule(pattern="5", act_bits=4, weight_bits=32),)
    )
    given = {"task": "classification", "layers": [{"name": "3", "note": "kept", "weight_bits": 3}]}
    write_packed(ready(config), path, given)
    found = load_packed(network(config), path)
    assert found["task"] == "classification"
    assert found["format"] == "packed"
    by_name = {entry["name"]: entry for entry in found["layers"]}
    assert {n: (e["weight_bits"], e["input_bits"]) for n, e in by_name.items()} == {
        "0": (3, 32),
        "3": (3, 32),
        "5": (32, 4),
    }
    assert by_name["3"]["note"] == "kept"
    assert by_name["0"]["weight"]["shape"] == [6, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight_bits": 3}, "layer '0': its weight"),
        ({"act_bits": 3}, "layer '0': its input"),
        ({"weight_quantizer": "ewgs"}, "ewgs"),
        ({"weight_options": {"per_channel": True}}, "scales along dimension 0"),
        ({"output_scale": "always"}, "0.output_scale.scale is missing"),
        ({"rules": (QuantRule(pattern="5", skip=True),)}, "layer '5' is quantized"),
        ({"signed_input": True}, "layer '0'"),
        ({"width": 8}, "1.bias"),
    ],
)
def test_another_model_is_refused_and_left_as_it_is(change, named, tmp_path):
    path = tmp_path / "model.safetensors"
    write_packed(ready(QuantConfig(output_scale="auto")), path, {})
    width = change.pop("width", 6)
    other = network(QuantConfig(**change), width=width)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="not of this model") as error:
        load_packed(other, path)
    assert named in str(error.value)
    assert all(
        torch.equal(before[k].nan_to_num(), v.nan_to_num()) for k, v in other.state_dict().items()
    )


def test_other_options_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    config = {"weight_quantizer": "uniform", "signed_input": True}
    write_packed(ready(QuantConfig(**config)), path, {})
    with pytest.raises(ValueError, match="layer '0'"):
        load_packed(network(QuantConfig(weight_options={"grid": "full"}, **config)), path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path, model = tmp_path / "model.safetensors", ready(QuantConfig())
    with pytest.raises(ValueError, match="no such file"):
        read_packed(path)
    write_packed(model, path, {})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.safetensors"):
            load_packed(model, path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="must be 'packed'"):
        read_packed(path)
    path.write_bytes(whole)
    load_packed(model, path)


def test_what_cannot_be_packed_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    broken = ready(QuantConfig())
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = torch.nan
    for model in (nn.Linear(2, 2), network(QuantConfig()), ready(QuantConfig()).bfloat16(), broken):
        with pytest.raises(ValueError):
            write_packed(model, path, {})
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("bits", "share"), [(4, 7.5), (2, 15.0), (8, 3.9), (3, 10.2)])
def test_weights_take_their_bits(bits, share, tmp_path):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(), nn.Conv2d(96, 64, 1)
    )
    rules = (QuantRule(pattern="0", skip=True),)
    quantize_model(
        model,
        QuantConfig(
            weight_quantizer="lsq",
            weight_bits=bits,
            weight_options={"per_channel": True},
            rules=rules,
        ),
    )
    set_scales(model, lambda: model(torch.rand(2, 3, 8, 8)))
    write_packed(model, path, {})
    stored = sum(v.nbytes for k, v in load_file(path).items() if "weight" in k and k[0] != "0")
    assert stored <= sum(model[i].weight.numel() * 4 for i in (2, 4)) / share


def test_reading_needs_no_torch(tmp_path):
    path = tmp_path / "model.safetensors"
    write_packed(ready(QuantConfig()), path, {})
    code = (
        "import sys; from tr_det.export.packed_file import read_packed; "
        f"print(read_packed({str(path)!r}).weights['0'].values().shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["(6,", "3,", "3,", "3)", "False"]


def test_a_detector_comes_back(make_config, tmp_path):
    from detectron2.modeling import build_model

    path = tmp_path / "model.safetensors"
    cfg = make_config("MODEL.DEVICE", "cpu", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    model, loaded = build_model(cfg).eval(), build_model(cfg).eval()
    inputs = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    set_scales(model, lambda: model(inputs))
    write_packed(model, path, {})
    load_packed(loaded, path)
    expected, found = (each(inputs)[0]["instances"] for each in (model, loaded))
    assert len(expected) > 0
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
