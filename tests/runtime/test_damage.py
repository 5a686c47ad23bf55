"""Damaged checkpoints are told from whole ones, whatever has happened to them."""

import os
import random
import re

import pytest
import torch

from tr_det.runtime.checkpoints import StrictCheckpointer
from tr_det.runtime.damage import check_optimizer_state, is_whole, read_checkpoint


def network():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def trained():
    """Return a network and its optimizer after an update."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    """Return the path of a checkpoint with an optimizer."""
    model, optimizer = trained()
    StrictCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_final", iteration=1)
    return tmp_path / "model_final.pth"


def damaged(content, rng):
    """Return a file's content cut short, with some bits flipped or a stretch of zeros."""
    kind, place = rng.randrange(3), rng.randrange(len(content))
    if kind == 0:
        return content[:place]
    changed = bytearray(content)
    if kind == 1:
        for _ in range(rng.choice([1, 1, 4])):
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        end = min(place + 64, len(content))
        changed[place:end] = bytes(end - place)
    return bytes(changed)


def leaves(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value.tolist() if isinstance(value, torch.Tensor) else value


def test_a_damaged_checkpoint_is_one_line_with_its_name_or_reads_as_before(saved):
    whole, rng, refused = saved.read_bytes(), random.Random(0), []
    before = list(leaves(read_checkpoint(saved)))
    for _ in range(300):
        saved.write_bytes(damaged(whole, rng))
        try:
            assert list(leaves(read_checkpoint(saved))) == before
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 200
    line = rf"{re.escape(str(saved))}: not a readable checkpoint \(.+\)"
    assert [text for text in refused if not re.fullmatch(line, text)] == []
    assert not any("weights_only" in text for text in refused)


def test_a_bit_that_torch_does_not_miss_makes_a_file_damaged(saved):
    weight = torch.load(saved)["model"]["0.weight"]
    content = bytearray(saved.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 2] ^= 4
    saved.write_bytes(content)
    assert not torch.equal(torch.load(saved)["model"]["0.weight"], weight)
    assert not is_whole(saved)


class Planted:
    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return (self.function, ("echo planted",))


@pytest.mark.parametrize(("function", "name"), [(print, "print"), (os.system, "posix.system")])
def test_code_in_a_checkpoint_is_named_and_torch_s_advice_to_run_it_is_not_given(
    saved, function, name, capfd
):
    torch.save({"model": network().state_dict(), "more": Planted(function)}, saved)
    with pytest.raises(ValueError, match=rf"final\.pth: .* \(it wants {name}, but only") as error:
        StrictCheckpointer(network()).load(str(saved))
    assert "weights_only" not in str(error.value)
    assert not capfd.readouterr().out


@pytest.mark.parametrize(
    ("key", "change", "fault"),
    [
        ("1.running_var", lambda v: v.fill_(torch.inf), "has NaN or infinite values"),
        ("1.running_var", lambda v: v.neg_(), "has negative variances"),
        ("0.weight", lambda v: v.fill_(torch.nan), "has NaN or infinite values"),
        ("0.weight", lambda v: v.double(), r"of another dtype \(float64 for float32\)"),
        ("0.bias", lambda v: v.int(), r"of another dtype \(int32 for float32\)"),
    ],
)
def test_values_that_no_training_leaves_are_refused(saved, key, change, fault):
    content = torch.load(saved)
    content["model"][key] = change(content["model"][key])
    torch.save(content, saved)
    with pytest.raises(ValueError, match=rf"final\.pth does not fit the model: {key}: {fault}"):
        StrictCheckpointer(network()).load(str(saved))


def test_packed_weights_start_a_run_and_do_not_go_on_with_one(saved):
    content = torch.load(saved)
    content["model"]["0.weight"] = content["model"]["0.weight"].half()
    torch.save(content, saved)
    model, optimizer = trained()
    StrictCheckpointer(model).load(str(saved))
    assert torch.equal(model[0].weight, content["model"]["0.weight"].float())
    with pytest.raises(ValueError, match=r"0\.weight: of another dtype \(float16 for float32\)"):
        StrictCheckpointer(model, optimizer=optimizer).load(str(saved))


def test_an_optimizer_s_state_of_another_shape_is_refused():
    _, optimizer = trained()
    state = optimizer.state_dict()
    state["state"][0]["momentum_buffer"] = torch.zeros(1, 4)
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"momentum_buffer is of another shape \(\(1, 4\) for"):
        check_optimizer_state(optimizer)
