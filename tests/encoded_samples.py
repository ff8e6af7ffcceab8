"""Images, audio and arrays as bytes, some with false headers, for the tests of decoding."""

import io
import struct
import zlib

import numpy as np
import pytest
import soundfile

from drip.errors import InputError
from drip.media import InputSpec

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (12, 10), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(60) * 2, np.arange(90)).astype(np.uint8)
TONE = (0.5 * np.sin(np.arange(400) / 7)).astype(np.float32)
GREY_SPEC = InputSpec(shape=(1, 12, 10))
COLOUR_SPEC = InputSpec(shape=(3, 12, 10))


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def sound(values, rate=16_000, form="WAV", subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_declaring(width, height, *, bits=8, colour=0, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def npy_declaring(shape, data=b"", descr="<f4", fortran_order=False):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    )
    return buffer.getvalue() + data


def error_of(spec, data, media_type):
    """The error with which an input spec rejects these bytes."""
    with pytest.raises(InputError) as caught:
        spec.prepare(data, media_type)
    return caught.value
