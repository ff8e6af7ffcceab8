"""Encoded bytes to model inputs and back: images (Pillow), audio (soundfile), npy; the input contract.

The only room that parses what comes from outside. Nothing here knows a model or a store.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drip.errors import InputError
from drip.types import JsonObject

Resize = Literal["exact", "stretch", "crop"]

NPY = "application/x-npy"
MEDIA_TYPES: Mapping[str, str] = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".npy": NPY,
}
"""Media type by file suffix, in lower case; what sources accept."""

SUFFIXES: Mapping[str, str] = {kind: suffix for suffix, kind in MEDIA_TYPES.items() if suffix != ".jpeg"}
"""File suffix by media type; what exports write."""

# What the decoders may open for a media type: bytes of another format are refused, not guessed at.
_IMAGE_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/bmp": "BMP"}
_AUDIO_FORMATS = {"audio/wav": ("WAV", "WAVEX"), "audio/flac": ("FLAC",)}

_MAX_INPUT_VALUES = 2**26
"""A quarter of a gibibyte as float32; the first layer of a network takes many times that."""
_DEFAULT_MAX_VALUES = 64_000_000


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How encoded samples become the inputs that a model was trained on.

    Attributes:
        shape: Shape of one input: (channels, height, width) of an image, (channels, samples) of audio,
            any shape of an array.
        resize: ``exact`` refuses other sizes; ``stretch`` resizes both sides; ``crop`` resizes the
            shorter side and cuts the middle. Audio: ``crop`` cuts or zero-pads at the end. Bilinear
            with antialiasing. Transparency and orientation tags are ignored; 16-bit images keep their
            high byte; of an animation the first frame counts.
        mean: Subtracted per channel, after scaling values to [0, 1] (images) or [-1, 1] (audio).
        std: Divided by, per channel.
        sample_rate_hz: Required rate of audio; 0 for images and arrays.
        max_values: Largest number of pixels or audio samples that is decoded; more is refused before
            memory is taken.
    """

    shape: tuple[int, ...]
    resize: Resize = "exact"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    sample_rate_hz: int = 0
    max_values: int = _DEFAULT_MAX_VALUES

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: a field is outside its range.
        """
        if not self.shape or not all(_is_count(side) and side > 0 for side in self.shape):
            raise InputError(f"shape must be positive sizes such as (3, 224, 224), got {self.shape!r}")
        if self.resize not in get_args(Resize):
            raise InputError(f"resize must be one of {', '.join(get_args(Resize))}, got {self.resize!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.shape[0]) or not np.isfinite(_float32(values)).all():
                raise InputError(
                    f"{name} must be one finite number or one per channel ({self.shape[0]}), got {values!r}"
                )
        if _float32(self.std).min() <= 0:
            raise InputError(f"std must be positive, got {self.std!r}")
        if not (_is_count(self.sample_rate_hz) and _is_count(self.max_values) and self.max_values > 0):
            raise InputError(
                "sample_rate_hz must be a rate from 0 and max_values a count from 1, "
                f"got {self.sample_rate_hz!r} and {self.max_values!r}"
            )
        if math.prod(self.shape) > _MAX_INPUT_VALUES:
            raise InputError(f"shape must have at most {_MAX_INPUT_VALUES} values, got {self.shape}")

    def prepare(self, data: bytes, media_type: str) -> NDArray[np.float32]:
        """Decode one sample.

        Args:
            data: Encoded bytes.
            media_type: One of the values of :data:`MEDIA_TYPES`.

        Returns:
            float32 of :attr:`shape`, normalised.

        Raises:
            InputError: corrupt or truncated bytes, an unknown type, a size that the contract refuses,
                a decompression bomb, NaN or infinite values.

        >>> contract = InputSpec(shape=(1, 2, 2))
        >>> contract.prepare(encode_png(np.array([[0, 255], [51, 0]], np.uint8)), "image/png").tolist()
        [[[0.0, 1.0], [0.20000000298023224, 0.0]]]
        """
        kind = media_type.partition("/")[0]
        if media_type not in SUFFIXES:
            raise InputError(f"media type must be one of {', '.join(SUFFIXES)}, got {media_type!r}")
        if kind == "image":
            values = self._image(data, media_type)
        elif kind == "audio":
            values = self._audio(data, media_type)
        else:
            values = _float32(decode_npy(data, max_values=self.max_values))
        if values.shape != self.shape:
            raise InputError(f"an input of shape {self.shape} is needed, got {values.shape}")
        channels = (-1,) + (1,) * (len(self.shape) - 1)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            values = (values - _float32(self.mean).reshape(channels)) / _float32(self.std).reshape(channels)
        if not np.isfinite(values).all():
            raise InputError("finite values are needed, got NaN or infinity; check the sensor or the encoder")
        return values

    def to_json(self) -> JsonObject:
        """The fields as JSON, for policies and model files."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """The contract that :meth:`to_json` wrote.

        Raises:
            InputError: unknown or malformed fields.
        """
        try:
            fields: Any = {
                key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
            }
            return cls(**fields)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"an input contract is needed, got {content!r}: {error}") from error

    def _check_count(self, count: int, what: str) -> None:
        if count > self.max_values:
            raise InputError(
                f"at most {self.max_values} {what} are decoded, got {count}; raise max_values if it is wanted"
            )

    def _image(self, data: bytes, media_type: str) -> NDArray[np.float32]:
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise InputError(f"an image needs a shape of (1 or 3, height, width), got {self.shape}")
        n_channels, height, width = self.shape
        try:
            with warnings.catch_warnings():
                # Large pictures are refused here, before they are decoded; odd metadata is ignored.
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=(_IMAGE_FORMATS[media_type],)) as opened:
                    self._check_count(opened.width * opened.height, "pixels")
                    picture = _eight_bits(opened).convert("L" if n_channels == 1 else "RGB")
        except InputError:
            raise
        except UnidentifiedImageError as error:
            raise InputError(
                f"bytes of type {media_type} are needed, got {len(data)} that begin with {data[:8]!r}"
            ) from error
        except Exception as error:  # Pillow's decoders raise many types on corrupt bytes
            raise InputError(
                f"a complete image is needed, got {len(data)} bytes that fail: {error}"
            ) from error
        picture = self._resized(picture, width, height)
        pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
        return pixels[None] if n_channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        if picture.size == (width, height):
            return picture
        if self.resize == "exact":
            raise InputError(
                f"an image of {width} x {height} pixels is needed, got {picture.width} x {picture.height}; "
                "set resize to 'stretch' or 'crop' to accept other sizes"
            )
        if self.resize == "stretch":
            return picture.resize((width, height), Image.Resampling.BILINEAR)
        scale = max(width / picture.width, height / picture.height)
        size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        # Only the cut is computed: a picture of extreme proportions would take all memory when resized.
        across, down = picture.width / size[0], picture.height / size[1]
        box = (
            left * across,
            top * down,
            min((left + width) * across, picture.width),
            min((top + height) * down, picture.height),
        )
        return picture.resize((width, height), Image.Resampling.BILINEAR, box)

    def _audio(self, data: bytes, media_type: str) -> NDArray[np.float32]:
        if len(self.shape) != 2:
            raise InputError(f"audio needs a shape of (channels, samples), got {self.shape}")
        n_channels, n_samples = self.shape
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as sound:
                self._check_count(sound.frames * sound.channels, "audio values")
                rate, n_frames, form = sound.samplerate, sound.frames, sound.format
                values = cast("NDArray[np.float32]", sound.read(dtype="float32", always_2d=True)).T
        except soundfile.SoundFileError as error:
            raise InputError(f"complete audio is needed, got {len(data)} bytes that fail: {error}") from error
        if form not in _AUDIO_FORMATS[media_type]:
            raise InputError(f"bytes of type {media_type} are needed, got the format {form}")
        if values.shape[1] < n_frames or _is_cut_riff(data):
            raise InputError(f"complete audio is needed, got {len(data)} bytes that end too early")
        if rate != self.sample_rate_hz:
            raise InputError(
                f"audio at {self.sample_rate_hz} Hz is needed, got {rate} Hz; resample it at the source"
            )
        if len(values) != n_channels:
            raise InputError(f"audio with {n_channels} channels is needed, got {len(values)}")
        if values.shape[1] == n_samples:
            return values
        if self.resize != "crop":
            raise InputError(
                f"{n_samples} samples are needed, got {values.shape[1]}; set resize to 'crop' to cut or pad"
            )
        fitted = np.zeros(self.shape, dtype=np.float32)
        fitted[:, : values.shape[1]] = values[:, :n_samples]
        return fitted


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _float32(values: Any) -> NDArray[np.float32]:
    """The values as float32; what is too large becomes infinite, without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """High byte of a 16-bit grey picture, as Pillow does with colours; it would clip greys to white."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))


def _is_cut_riff(data: bytes) -> bool:
    """True where a WAV file is shorter than it says; recorders that stream leave the size open."""
    declared = int.from_bytes(data[4:8], "little")
    return data[:4] == b"RIFF" and declared != 0xFFFFFFFF and declared + 8 > len(data) + 1


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey (height, width) or RGB (height, width, 3) uint8 image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_npy(values: NDArray[Any]) -> bytes:
    """An array as npy bytes, without pickles."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes, *, max_values: int = _DEFAULT_MAX_VALUES) -> NDArray[Any]:
    """The array in npy bytes.

    Raises:
        InputError: not npy, truncated, pickled objects, or more than ``max_values`` values.

    >>> decode_npy(encode_npy(np.arange(3))).tolist()
    [0, 1, 2]
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of headers that Python 2 wrote
            shape, is_fortran, dtype = read_header(stream)
    except Exception as error:  # numpy parses the header as Python source, which fails in many ways
        raise InputError(f"an npy array is needed, got {len(data)} bytes that fail: {error}") from error
    if dtype.hasobject or dtype.kind not in "buif":
        raise InputError(f"an array of numbers is needed, got dtype {dtype}")
    if any(side < 0 for side in shape) or math.prod(shape) > max_values:
        raise InputError(f"an array of at most {max_values} values is needed, got shape {shape}")
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"a complete npy array is needed, got {len(data)} bytes for shape {shape}; send it anew"
        )
    values = np.frombuffer(data, dtype, offset=stream.tell()) if math.prod(shape) else np.empty(0, dtype)
    try:
        return values.reshape(shape, order="F" if is_fortran else "C").copy()
    except ValueError as error:  # more axes, or longer ones, than numpy has
        raise InputError(f"an array of numbers is needed, got shape {shape}: {error}") from error
