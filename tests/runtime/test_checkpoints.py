import pytest
import torch

from tr_det.core import QuantConfig, quantize_model, set_scales
from tr_det.runtime.checkpoints import StrictCheckpointer


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


@pytest.mark.parametrize(("count", "left"), [(1, ["10"]), (2, ["10", "9"]), (0, ["10", "8", "9"])])
def test_the_newest_by_number_are_kept(tmp_path, count, left):
    checkpointer = StrictCheckpointer(network(), str(tmp_path))
    for name in ("final", "8", "9", "10"):
        (tmp_path / f"model_{name}.pth").touch()
    (tmp_path / ".model_7.0a1b.pth").write_bytes(b"half of one")
    checkpointer.keep_newest(count)
    found = {path.stem.removeprefix("model_") for path in tmp_path.iterdir()}
    assert found == {"final", *left}
