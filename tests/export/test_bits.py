import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tr_det.export.bits import pack, unpack


@given(st.data(), st.integers(1, 8))
def test_every_number_comes_back_and_takes_its_own_bits(data, bits):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9))
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.int64]))
    numbers = data.draw(arrays.arrays(dtype, shape, elements=st.integers(0, 2**bits - 1)))
    packed = pack(numbers, bits)
    assert packed.dtype == np.uint8
    assert packed.nbytes == bits * -(-numbers.size // 8)
    assert unpack(packed, bits, numbers.size).tolist() == numbers.reshape(-1).tolist()
    # Python's integers: bit i of plane j is bit j of number i, nothing else.
    planes = [int.from_bytes(plane.tobytes(), "little") for plane in packed]
    flat = [int(number) for number in numbers.reshape(-1)]
    assert planes == [
        sum((number >> j & 1) << i for i, number in enumerate(flat)) for j in range(bits)
    ]


@pytest.mark.parametrize(("numbers", "bits"), [([4], 2), ([-1, 0], 8), ([0], 0), ([0], 9)])
def test_what_does_not_fit_is_refused(numbers, bits):
    with pytest.raises(ValueError, match="must be"):
        pack(np.array(numbers), bits)


@pytest.mark.parametrize(("bits", "count"), [(3, 9), (2, 8), (2, 17), (9, 9)])
def test_packed_numbers_of_another_size_are_refused(bits, count):
    packed = pack(np.arange(9) % 4, 2)
    assert unpack(packed, 2, 9).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    with pytest.raises(ValueError, match="must be"):
        unpack(packed, bits, count)
    with pytest.raises(ValueError, match="must be"):
        unpack(packed.astype(np.int8), 2, 9)
