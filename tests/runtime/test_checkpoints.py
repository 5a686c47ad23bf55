import os

import pytest
import torch

from tr_det.core import QuantConfig, quantize_model, set_scales
from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.run_folder import last_checkpoint


def network(width=3):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 2))


def quantized(bits=4, act_bits=32):
    model = network()
    quantize_model(model, QuantConfig(weight_bits=bits, act_bits=act_bits))
    return model


def test_full_precision_weights_load_into_a_quantized_model(tmp_path):
    first, second = network(), quantized()
    StrictCheckpointer(first, str(tmp_path)).save("fp")
    StrictCheckpointer(second).load(str(tmp_path / "fp.pth"))
    torch.testing.assert_close(second[0].weight, first[0].weight, rtol=0, atol=0)


def test_a_bare_state_dict_will_do(tmp_path):
    first, second = network(), network()
    torch.save(first.state_dict(), tmp_path / "bare.pth")
    StrictCheckpointer(second).load(str(tmp_path / "bare.pth"))
    torch.testing.assert_close(second[1].weight, first[1].weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (network(width=4), r"keys 3 of another shape \(0.weight \(4, 2\) for \(3, 2\)"),
        (torch.nn.Sequential(torch.nn.Linear(2, 3)), r"2 missing \(1.weight, 1.bias\)"),
        (torch.nn.Sequential(*network(), torch.nn.Linear(2, 2)), r"2 unexpected \(2.weight"),
        (quantized(bits=2), "0.weight_quantizer: .* codes -2 to 1, this .* codes -8 to 7"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, saved, message):
    StrictCheckpointer(saved, str(tmp_path)).save("other")
    with pytest.raises(ValueError, match=message):
        StrictCheckpointer(quantized()).load(str(tmp_path / "other.pth"))


def without(state, name):
    return {key: value for key, value in state.items() if name not in key}


@pytest.mark.parametrize(
    ("act_bits", "lost"),
    [(32, "1.weight_quantizer"), (2, "1.input_quantizer"), (2, "output_scale")],
)
def test_state_of_some_quantizers_only_is_refused(tmp_path, act_bits, lost):
    model = quantized(act_bits=act_bits)
    torch.save(without(model.state_dict(), lost), tmp_path / "lost.pth")
    with pytest.raises(ValueError, match=rf"missing \((\d\.)?{lost}"):
        StrictCheckpointer(model).load(str(tmp_path / "lost.pth"))


def test_inputs_may_be_quantized_before_weights_are(tmp_path):
    first, second = network(), network()
    quantize_model(first, QuantConfig(weight_bits=32, act_bits=2))
    quantize_model(second, QuantConfig(weight_bits=2, act_bits=2))
    first[1].register_forward_pre_hook(lambda _, args: args[0].abs())
    set_scales(first, lambda: first(torch.rand(4, 2)))
    StrictCheckpointer(first, str(tmp_path)).save("inputs")
    StrictCheckpointer(second).load(str(tmp_path / "inputs.pth"))
    assert second[1].input_quantizer.is_calibrated
    assert not second[1].weight_quantizer.is_calibrated


def test_an_older_version_s_checkpoint_is_one_line(tmp_path):
    state = quantized().state_dict()
    for key in [key for key in state if key.endswith("_extra_state")]:
        del state[key]
        state[key.replace("_extra_state", "initialized")] = torch.tensor(True)
    torch.save({"model": state}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match="an older version of tr_det wrote this") as error:
        StrictCheckpointer(quantized()).load(str(tmp_path / "old.pth"))
    assert "\n" not in str(error.value)


def test_a_broken_or_missing_file_is_named(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.pth: not a readable checkpoint"):
        StrictCheckpointer(network()).load(str(tmp_path / "broken.pth"))
    with pytest.raises(FileNotFoundError, match=r"none.pth"):
        StrictCheckpointer(network()).load(str(tmp_path / "none.pth"))


def test_a_checkpoint_that_fails_half_way_leaves_the_one_before(tmp_path, monkeypatch):
    checkpointer = StrictCheckpointer(network(), str(tmp_path))
    checkpointer.save("model_final", iteration=1)
    whole = (tmp_path / "model_final.pth").read_bytes()

    def full(data, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_final", iteration=2)
    assert (tmp_path / "model_final.pth").read_bytes() == whole
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    ("keep", "before", "left"),
    [
        (1, ["8"], ["10"]),
        (2, ["8"], ["9", "10"]),
        (2, ["7", "8"], ["9", "10"]),
        (2, ["5", "6", "7", "8", "²"], ["5", "6", "7", "8", "²", "9", "10"]),
        (1, ["11"], ["10"]),  # of a future that the run went back from
        (0, ["8"], ["8", "9", "10"]),
    ],
)
def test_the_last_ones_written_are_kept(tmp_path, keep, before, left):
    for number, name in enumerate(("final", *before)):
        (tmp_path / f"model_{name}.pth").touch()
        os.utime(tmp_path / f"model_{name}.pth", ns=(number, number))
    (tmp_path / ".model_7.0a1b.pth").write_bytes(b"half of one")
    checkpointer = StrictCheckpointer(network(), str(tmp_path), keep=keep)
    for number, name in enumerate(("9", "10"), start=100):
        checkpointer.save(f"model_{name}")
        os.utime(tmp_path / f"model_{name}.pth", ns=(number, number))
    assert {p.stem.removeprefix("model_") for p in tmp_path.glob("*.pth")} == {"final", *left}


def test_old_ones_go_only_when_the_new_one_is_noted(tmp_path, monkeypatch):
    checkpointer = StrictCheckpointer(network(), str(tmp_path), keep=1)
    checkpointer.save("model_1")

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpointer, "tag_last_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_2")
    assert last_checkpoint(tmp_path) == str(tmp_path / "model_1.pth")


@pytest.mark.parametrize("held", [torch.zeros(1, 2, dtype=torch.int8), torch.zeros(3, 2)], ids=str)
def test_codes_of_frozen_weights_have_their_shape(tmp_path, held):
    state = {**quantized().state_dict(), "0.weight_quantizer.held": held}
    torch.save({"model": state}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"0\.weight_quantizer\.held: not of its weight's shape"):
        StrictCheckpointer(quantized()).load(str(tmp_path / "odd.pth"))


def test_weights_alone_are_no_run_to_go_on_with(tmp_path):
    model = network()
    StrictCheckpointer(model, str(tmp_path)).save("model_final")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpointer = StrictCheckpointer(model, str(tmp_path), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"final\.pth: weights without the state .* \(optimizer\)"):
        checkpointer.resume_or_load("", resume=True)
    checkpointer.load(str(tmp_path / "model_final.pth"), checkpointables=[])
    torch.save(
        {"model": model.state_dict(), "optimizer": {"state": 3}}, tmp_path / "model_final.pth"
    )
    with pytest.raises(ValueError, match=r"state of the run does not fit .*\(optimizer: KeyError"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("0.weight_quantizer.scale", 0.0, "has a scale of zero"),
        ("0.weight_quantizer.scale", torch.inf, "has infinite values"),
        ("output_scale.scale", 0.0, "has a scale of zero"),
        ("0.weight_quantizer.scale", torch.nan, "is not set, though other weights have a scale"),
        ("0.input_quantizer.scale", torch.nan, ""),
    ],
)
def test_scales_are_unset_or_can_be_divided_by(tmp_path, key, value, fault):
    state = quantized(act_bits=2).state_dict()
    key = next(name for name in state if name.endswith(key))
    for name in state:
        if name.endswith(".scale"):
            state[name].fill_(value if name == key else 1.0)
    torch.save({"model": state}, tmp_path / "odd.pth")
    checkpointer = StrictCheckpointer(quantized(act_bits=2))
    if not fault:  # what had no input yet
        checkpointer.load(str(tmp_path / "odd.pth"))
        return
    with pytest.raises(ValueError, match=rf"odd\.pth does not fit the model: {key}: {fault}"):
        checkpointer.load(str(tmp_path / "odd.pth"))
