"""The input spec: how encoded images, audio files and npy arrays become model inputs; and the way back.

Everything here assumes that the bytes were made by an attacker. They are checked before they cost memory, by
what their headers declare, and fail with :class:`~drip.errors.InputError` only: one bad sample goes to
quarantine and must never end a run. Nothing here knows a model or a store.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drip.errors import InputError, brief
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
"""Media type by file suffix in lower case: the files that sources read."""

SUFFIXES: Mapping[str, str] = {kind: suffix for suffix, kind in MEDIA_TYPES.items() if suffix != ".jpeg"}
"""File suffix by media type: the names that exports write."""

# Pillow and libsndfile open dozens of formats. Only the declared one may be decoded: guessing would open
# decoders that nobody tests here, and a file would mean something else than its name says.
_IMAGE_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/bmp": "BMP"}
_AUDIO_FORMATS = {"audio/wav": ("WAV", "WAVEX"), "audio/flac": ("FLAC",)}

# 256 MiB as float32, and the activations of a network's first layer are many times as large.
_MAX_INPUT_VALUES = 2**26
_MAX_SAMPLE_RATE_HZ = 2**31 - 1  # libsndfile has a C int: no file could match a higher rate
_DEFAULT_MAX_VALUES = 64_000_000


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How encoded samples become the inputs that a model was trained on.

    Attributes:
        shape: Shape of one input: (channels, height, width) of an image, (channels, samples) of audio,
            any shape of an array.
        resize: ``exact`` rejects other sizes; ``stretch`` resizes both sides; ``crop`` resizes the
            shorter side and cuts out the centre. Audio: ``crop`` cuts or zero-pads at the end. Bilinear
            with antialiasing. Transparency and orientation tags are ignored; 16-bit images keep their
            high byte; of an animation, the first frame is used.
        mean: Subtracted per channel, after scaling values to [0, 1] (images) or [-1, 1] (audio).
        std: Divided by, per channel.
        sample_rate_hz: Required rate of audio; 0 for images and arrays.
        max_values: Largest number of pixels, audio samples or array values that is decoded. Larger samples
            are rejected before memory is allocated for them.
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
            raise _spec_error(f"shape must be positive sizes such as (3, 224, 224), got {self.shape!r}")
        if self.resize not in get_args(Resize):
            raise _spec_error(f"resize must be one of {', '.join(get_args(Resize))}, got {self.resize!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.shape[0]) or not np.isfinite(_float32(values)).all():
                raise _spec_error(
                    f"{name} must be one finite number or one per channel ({self.shape[0]}), got {values!r}"
                )
        if _float32(self.std).min() <= 0:
            raise _spec_error(f"std must be positive, got {self.std!r}")
        rate_fits = _is_count(self.sample_rate_hz) and self.sample_rate_hz <= _MAX_SAMPLE_RATE_HZ
        if not (rate_fits and _is_count(self.max_values) and self.max_values > 0):
            raise _spec_error(
                f"sample_rate_hz must be from 0 to {_MAX_SAMPLE_RATE_HZ} and max_values at least 1, "
                f"got {self.sample_rate_hz!r} and {self.max_values!r}"
            )
        if math.prod(self.shape) > _MAX_INPUT_VALUES:
            raise _spec_error(f"shape must have at most {_MAX_INPUT_VALUES} values, got {self.shape}")

    def prepare(self, data: bytes, media_type: str) -> NDArray[np.float32]:
        """Decode one sample.

        Args:
            data: Encoded bytes.
            media_type: One of the values of :data:`MEDIA_TYPES`.

        Returns:
            float32 of :attr:`shape`, normalised.

        Raises:
            InputError: corrupt or truncated bytes, an unknown type, a size that does not fit the input spec,
                a decompression bomb, NaN or infinite values.

        >>> spec = InputSpec(shape=(1, 2, 2))
        >>> spec.prepare(encode_png(np.array([[0, 255], [51, 0]], np.uint8)), "image/png").tolist()
        [[[0.0, 1.0], [0.20000000298023224, 0.0]]]
        """
        kind = media_type.partition("/")[0]
        if media_type not in SUFFIXES:
            raise InputError(
                f"media type {media_type!r} is not supported; use one of {', '.join(SUFFIXES)}",
                code="sample-undecodable",
            )
        if not data:
            raise InputError(f"the {media_type} file is empty", code="sample-undecodable")
        if kind == "image":
            values = self._image(data, media_type)
        elif kind == "audio":
            values = self._audio(data, media_type)
        else:
            values = _float32(decode_npy(data, max_values=self.max_values))
        if values.shape != self.shape:
            raise InputError(
                f"the sample has shape {values.shape}, but the input spec says {self.shape}",
                code="sample-shape",
            )
        channels = (-1,) + (1,) * (len(self.shape) - 1)
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are found below
            values = (values - _float32(self.mean).reshape(channels)) / _float32(self.std).reshape(channels)
        if not np.isfinite(values).all():
            raise InputError(
                "the sample contains NaN or infinity; check the sensor or the encoder",
                code="sample-non-finite",
            )
        return values

    def to_json(self) -> JsonObject:
        """The fields as JSON, for policies and model files."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: JsonObject) -> Self:
        """The input spec that :meth:`to_json` wrote.

        Raises:
            InputError: unknown or malformed fields.
        """
        try:
            fields: Any = {
                key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
            }
            return cls(**fields)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _spec_error(f"{brief(content)} is not an input spec: {error}") from error

    def _check_count(self, count: int, what: str) -> None:
        if count > self.max_values:
            raise InputError(
                f"the sample has {count} {what}, more than {self.max_values}; raise max_values to accept it",
                code="sample-too-large",
            )

    def _image(self, data: bytes, media_type: str) -> NDArray[np.float32]:
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise InputError(
                "the sample is an image, but the input spec has no shape of (1 or 3, height, width): "
                f"{self.shape}",
                code="sample-shape",
            )
        n_channels, height, width = self.shape
        try:
            with warnings.catch_warnings():
                # Pillow warns about large images and odd metadata. The size is checked below, before anything
                # is decoded, and metadata is not read.
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=(_IMAGE_FORMATS[media_type],)) as opened:
                    self._check_count(opened.width * opened.height, "pixels")
                    picture = _eight_bits(opened).convert("L" if n_channels == 1 else "RGB")
        except InputError:
            raise
        except UnidentifiedImageError as error:
            raise InputError(
                f"not an {media_type} file: it begins with {data[:8]!r}", code="sample-undecodable"
            ) from error
        except Image.DecompressionBombError as error:  # Pillow's own limit of 179 megapixels
            raise InputError(f"the image is too large: {error}", code="sample-too-large") from error
        except Exception as error:  # Pillow's decoders raise many exception types on corrupt bytes
            raise InputError(
                f"the image is truncated or corrupt ({error})", code="sample-undecodable"
            ) from error
        picture = self._resized(picture, width, height)
        pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
        return pixels[None] if n_channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        if picture.size == (width, height):
            return picture
        if self.resize == "exact":
            raise InputError(
                f"the image has {picture.width} x {picture.height} pixels, but the input spec says {width} x "
                f"{height}; set resize to 'stretch' or 'crop' to accept other sizes",
                code="sample-shape",
            )
        if self.resize == "stretch":
            return picture.resize((width, height), Image.Resampling.BILINEAR)
        scale = max(width / picture.width, height / picture.height)
        size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        # Pillow resizes only the part in the box. Resizing the whole image before the cut fills the memory
        # when its proportions are extreme: 1 x 60,000 pixels would become 224 x 13,440,000.
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
            raise InputError(
                f"the sample is audio, but the input spec has no shape of (channels, samples): {self.shape}",
                code="sample-shape",
            )
        n_channels, n_samples = self.shape
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as sound:
                self._check_count(sound.frames * sound.channels, "audio values")
                rate, n_frames, form = sound.samplerate, sound.frames, sound.format
                values = cast("NDArray[np.float32]", sound.read(dtype="float32", always_2d=True)).T
        except soundfile.SoundFileError as error:
            raise InputError(
                f"the audio is truncated or corrupt ({error})", code="sample-undecodable"
            ) from error
        if form not in _AUDIO_FORMATS[media_type]:
            raise InputError(f"not an {media_type} file: its format is {form}", code="sample-undecodable")
        # libsndfile returns the remains of a truncated file as if they were complete, which 'crop' would then
        # pad.
        if values.shape[1] < n_frames or _is_truncated_wav(data):
            raise InputError(
                f"the audio is truncated: {len(data)} bytes are fewer than its header declares",
                code="sample-undecodable",
            )
        if rate != self.sample_rate_hz:
            raise InputError(
                f"the audio is sampled at {rate} Hz, but the input spec says {self.sample_rate_hz} Hz; "
                "resample it at "
                "the source",
                code="sample-shape",
            )
        if len(values) != n_channels:
            raise InputError(
                f"the audio has {len(values)} channels, but the input spec says {n_channels}",
                code="sample-shape",
            )
        if values.shape[1] == n_samples:
            return values
        if self.resize != "crop":
            raise InputError(
                f"the audio has {values.shape[1]} samples, but the input spec says {n_samples}; set resize "
                "to 'crop' to cut or pad it",
                code="sample-shape",
            )
        fitted = np.zeros(self.shape, dtype=np.float32)
        fitted[:, : values.shape[1]] = values[:, :n_samples]
        return fitted


def trial_inputs(shape: Sequence[int], n: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Inputs to try a model on when no sample is at hand, by kind: use the first kind that it accepts.

    Normal noise has both signs. A model of powers or of ids, whose front end takes a logarithm or looks up a
    table, accepts only the others.

    Args:
        shape: Shape of one input.
        n: Number of inputs.
        seed: Of the noise.

    Returns:
        Arrays of shape (n, *shape).
    """
    random = np.random.default_rng(seed)
    normal = random.normal(size=(n, *shape)).astype(np.float32)
    positive = np.abs(normal) + np.float32(0.01)
    return {
        "noise": normal,
        "positive noise": positive,
        "noise between 0 and 1": random.uniform(0.01, 0.99, size=normal.shape).astype(np.float32),
        "whole numbers": np.floor(positive),
        "bytes": random.integers(0, 256, size=normal.shape).astype(np.float32),
    }


def _spec_error(message: str) -> InputError:
    return InputError(message, code="input-spec-invalid")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _float32(values: Any) -> NDArray[np.float32]:
    """The values as float32; those that are too large become infinite, without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """High byte of a 16-bit grey image. Pillow's own conversion clips everything above 255 to white."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))


def _is_truncated_wav(data: bytes) -> bool:
    """True if a WAV file is shorter than its RIFF header declares.

    Recorders that stream cannot know the size and write 0xFFFFFFFF, which is accepted.
    """
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
            warnings.simplefilter("ignore")  # numpy warns about headers written by Python 2
            shape, is_fortran, dtype = read_header(stream)
    except Exception as error:  # numpy parses the header as Python source, which fails in many ways
        raise InputError(f"not an npy file ({error})", code="sample-undecodable") from error
    if dtype.hasobject or dtype.kind not in "buif":
        raise InputError(f"the array has dtype {dtype}; send real numbers", code="sample-undecodable")
    if any(side < 0 for side in shape) or math.prod(shape) > max_values:
        raise InputError(
            f"the array of shape {shape} has more than {max_values} values; raise max_values to accept it",
            code="sample-too-large",
        )
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"the npy file has {len(data)} bytes, but its header declares the shape {shape} of {dtype}",
            code="sample-undecodable",
        )
    # numpy.load would do, but allocates what the header declares before it looks at the length of the data.
    values = np.frombuffer(data, dtype, offset=stream.tell()) if math.prod(shape) else np.empty(0, dtype)
    try:
        return values.reshape(shape, order="F" if is_fortran else "C").copy()
    except ValueError as error:  # more axes, or longer ones, than numpy supports
        raise InputError(
            f"the array has shape {shape}, which numpy does not support: {error}", code="sample-undecodable"
        ) from error
