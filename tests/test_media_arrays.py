"""npy bytes to inputs: values unchanged, and InputError only on bad bytes."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from encoded_samples import RNG, error_of, npy_declaring

from drip.errors import InputError
from drip.media import NPY, InputSpec, decode_npy, encode_npy


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.arange(12, dtype=">i2").reshape(3, 4),
        np.arange(12).reshape(3, 4) % 2 == 0,
        np.zeros((3, 0, 4)),
        np.float32(7).reshape(()),
    ],
)
def test_npy_round_trip_is_exact(values):
    got = decode_npy(encode_npy(values))
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    got[...] = 0  # writable


def test_array_is_normalised_per_channel_and_not_scaled():
    values = RNG.normal(size=(2, 3, 4))
    spec = InputSpec((2, 3, 4), mean=(1.0, 2.0), std=(2.0, 4.0))
    got = spec.prepare(encode_npy(values), NPY)
    np.testing.assert_allclose(got[1], (values[1] - 2) / 4, rtol=1e-5, atol=1e-6)


def test_array_of_another_shape_is_rejected_with_both_shapes():
    error = error_of(InputSpec((4, 3)), encode_npy(np.zeros((3, 4))), NPY)
    assert error.code == "sample-shape"
    assert str(error) == "the sample has shape (3, 4), but the input spec says (4, 3)"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300, -1e300])
def test_values_that_are_not_finite_as_float32_are_rejected(bad):
    values = np.zeros((3, 4))
    values[1, 2] = bad
    assert error_of(InputSpec((3, 4)), encode_npy(values), NPY).code == "sample-non-finite"


def test_values_that_normalisation_makes_infinite_are_rejected():
    spec = InputSpec((1, 2), std=(1e-6,))
    assert error_of(spec, encode_npy(np.full((1, 2), 3e38)), NPY).code == "sample-non-finite"


def test_pickled_array_is_rejected_and_not_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Harmful()], dtype=object), allow_pickle=True)
    assert error_of(InputSpec((1,)), buffer.getvalue(), NPY).code == "sample-undecodable"
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("descr", ["<U4", "<c8", "<M8[s]", [("a", "<f4")], "|V4", "|S3"])
def test_arrays_of_anything_but_real_numbers_are_rejected(descr):
    assert error_of(InputSpec((1,)), npy_declaring((1,), bytes(16), descr), NPY).code == "sample-undecodable"


@pytest.mark.parametrize(
    "shape",
    [
        (10**12,),
        (2**40, 2**40),
        (0, 2**70),
        (-1,),
        (-1, -1),
        (-4, -1, 1),
        (1,) * 70,
        (60_000_000,),
        (2**63, 0),
    ],
)
def test_header_with_a_false_shape_is_rejected_before_memory_is_allocated(shape):
    tracemalloc.start()
    error = error_of(InputSpec((1,)), npy_declaring(shape, bytes(4)), NPY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code in ("sample-undecodable", "sample-too-large")
    assert peak < 2_000_000


def test_npy_that_is_too_short_or_too_long_is_rejected_at_every_offset():
    data = encode_npy(np.arange(6.0))
    for end in range(len(data)):
        with pytest.raises(InputError) as caught:
            decode_npy(data[:end])
        assert caught.value.code == "sample-undecodable"
    with pytest.raises(InputError) as caught:
        decode_npy(data + b"\0")
    assert caught.value.code == "sample-undecodable"


def test_array_over_max_values_is_rejected():
    with pytest.raises(InputError) as caught:
        decode_npy(encode_npy(np.zeros(6)), max_values=5)
    assert caught.value.code == "sample-too-large"


@pytest.mark.parametrize(
    "header",
    [b"{" * 60, b"(" * 5000, b"'''", b"{'descr': '<f4'}", b"\xff" * 20, b"1" * 5000, b"{'a': 1L,\n (\n}"],
)
def test_npy_with_a_nonsense_header_is_rejected(header):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    with pytest.raises(InputError) as caught:
        decode_npy(data)
    assert caught.value.code == "sample-undecodable"
