"""What every registered quantizer must do, at every bit-width and sign."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tr_det.core import QUANTIZERS, build_quantizer

pytestmark = [
    pytest.mark.parametrize("name", sorted(QUANTIZERS)),
    pytest.mark.parametrize("bits", range(1, 9)),
    pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"]),
]


def data(signed, seed=0, shape=(5, 3, 4), dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x if signed else x.relu()).to(dtype)


def ready(name, bits, signed, **options):
    quantizer = build_quantizer(name, bits, signed, **options)
    quantizer.initialize(data(signed))
    return quantizer


def through_file(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_codes_are_small_integers_that_name_the_level_of_the_output(name, bits, signed):
    quantizer, x = ready(name, bits, signed), data(signed, seed=1)
    codes, levels = quantizer.codes(x), quantizer.levels()
    assert codes.dtype == (torch.int8 if signed else torch.uint8)
    assert codes.shape == x.shape
    assert not codes.requires_grad
    assert torch.equal(levels, levels.sort().values)
    assert len(levels) == 2**bits
    low, high = quantizer.code_range.tolist()
    assert low <= codes.min() <= codes.max() <= high
    index = torch.searchsorted(torch.tensor(quantizer.grid.codes()), codes.long())
    torch.testing.assert_close(quantizer(x).detach(), levels[index], rtol=1e-6, atol=0)


def test_an_empty_input_passes_and_leaves_the_scale_to_the_next(name, bits, signed):
    quantizer, expected = build_quantizer(name, bits, signed), ready(name, bits, signed)
    assert quantizer(torch.zeros(0, 4)).shape == (0, 4)
    assert not quantizer.is_initialized
    quantizer(data(signed))
    assert torch.equal(quantizer.scale, expected.scale)


def test_codes_and_forward_have_no_side_effect(name, bits, signed):
    quantizer, x = ready(name, bits, signed), data(signed, seed=1)
    before, kept = copy.deepcopy(quantizer.state_dict()), x.clone()
    first, out = quantizer.codes(x), quantizer(x)
    assert torch.equal(first, quantizer.codes(x))
    assert torch.equal(out, quantizer(x))
    assert torch.equal(x, kept)
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_gradients_reach_the_input_and_only_a_trained_scale(name, bits, signed):
    for learn in (True, False):
        quantizer = ready(name, bits, signed, learn_scale=learn)
        x = data(signed, seed=1).requires_grad_()
        quantizer(x).square().sum().backward()
        assert torch.isfinite(x.grad).all()
        assert x.grad.any()
        assert (quantizer.scale.grad is not None) == learn
        assert not learn or torch.isfinite(quantizer.scale.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_layout_stay(name, bits, signed, dtype):
    quantizer = ready(name, bits, signed)
    x = data(signed, 1, (2, 3, 4, 5), dtype).to(memory_format=torch.channels_last)
    out = quantizer(x.requires_grad_())
    out.sum().backward()
    assert (out.dtype, x.grad.dtype) == (dtype, dtype)
    assert out.is_contiguous(memory_format=torch.channels_last)
    plain = quantizer(x.detach().contiguous())
    assert torch.equal(out.detach(), plain)
    for odd in (torch.tensor(0.5, dtype=dtype), torch.zeros(0, 3, dtype=dtype), x[::2, :, 1]):
        assert quantizer(odd).shape == quantizer.codes(odd).shape == odd.shape


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_copies_and_checkpoints_quantize_alike(name, bits, signed, way):
    quantizer, x = ready(name, bits, signed), data(signed, seed=1)
    if way == "state_dict":
        twin = build_quantizer(name, bits, signed)
        twin.load_state_dict(through_file(quantizer.state_dict()))
    else:
        twin = (
            copy.deepcopy(quantizer) if way == "deepcopy" else pickle.loads(pickle.dumps(quantizer))
        )
    twin.eval()
    assert torch.equal(twin(x), quantizer(x))
    with torch.no_grad():
        twin.scale.mul_(2)
    assert twin.scale != quantizer.scale


def test_what_is_not_ready_or_does_not_fit_is_refused(name, bits, signed):
    x = data(signed)
    with pytest.raises(RuntimeError, match="no scale yet"):
        build_quantizer(name, bits, signed).eval()(x)
    with pytest.raises(ValueError, match="NaN or inf"):
        build_quantizer(name, bits, signed).initialize(x / 0)
    other = build_quantizer(name, 1 if bits == 8 else bits + 1, signed)
    with pytest.raises(RuntimeError, match="the checkpoint has codes"):
        other.load_state_dict(ready(name, bits, signed).state_dict())


def test_a_compiled_quantizer_gives_the_same_numbers(name, bits, signed):
    torch._dynamo.reset()
    quantizer = ready(name, bits, signed)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    results = []
    for function in (quantizer, compiled):
        quantizer.scale.grad = None
        x = data(signed, seed=1).requires_grad_()
        out = function(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, quantizer.scale.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 200), spread=st.floats(1e-3, 1e3))
def test_any_data_gives_a_positive_scale_and_finite_results(name, bits, signed, seed, size, spread):
    quantizer = build_quantizer(name, bits, signed)
    x = (data(signed, seed, (size,)) * spread).requires_grad_()
    out = quantizer(x)
    out.sum().backward()
    assert quantizer.scale > 0
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(quantizer.scale.grad)
