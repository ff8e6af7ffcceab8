"""The input spec: how encoded images, audio files and npy arrays become model inputs; and the way back.

Everything here assumes that the bytes were made by an attacker. They are checked before they cost memory, by
what their headers declare, and fail with :class:`~drip.errors.InputError` only: one bad sample goes to
quarantine and must never end a run. This module does not use models or stores.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drip.errors import InputError, brief
from drip.types import JsonObject

Resize = Literal["exact", "stretch", "crop", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ChannelOrder = Literal["rgb", "bgr"]

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
_MAX_SIDE = 2**14
_BLOCK = 2**14
_MOST_PHASES = 2**12  # 44,100 to 48,000 Hz needs 160
_MAX_RESIZED = 2**24  # pixels of an image that is resized as a whole before a part is cut out
_WHOLE_NUMBERS = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How encoded samples become the inputs that a model was trained on.

    Attributes:
        shape: Shape of one input: (channels, height, width) of an image, (channels, samples) of audio,
            any shape of an array.
        resize: ``exact`` rejects other sizes; ``stretch`` resizes both sides; ``crop`` resizes the
            shorter side and cuts out the centre; ``letterbox`` resizes the longer side and fills the rest.
            Audio: ``crop`` cuts or zero-pads at the end. Transparency and orientation tags are ignored; 16-bit
            images keep their high byte; of an animation, the first frame is used.
        mean: Subtracted per channel, after scaling values to ``value_range`` (images) or [-1, 1] (audio).
        std: Divided by, per channel.
        sample_rate_hz: Required rate of audio; 0 for images and arrays.
        max_values: Largest number of pixels, audio samples or array values that is decoded. Larger samples
            are rejected before memory is allocated for them.
        value_range: What black and white become, before ``mean`` and ``std``: (0, 255) for models of bytes.
        channel_order: ``bgr`` for models that were trained on images as OpenCV reads them.
        interpolation: How images are resized, always with antialiasing, as Pillow does.
        shorter_side: For ``crop``, pixels of the shorter side before the cut; 0 cuts as little as possible.
            With 256, a shape of 224 x 224 has the usual evaluation of ImageNet models.
        fill: Grey value of the bars of ``letterbox``, 0 to 255.
        resample: Convert audio of other rates; otherwise they are rejected.
        mix: Average the channels of audio with too many, and repeat a single one; otherwise they are rejected.
        hop: Audio samples, at ``sample_rate_hz``, between the starts of two windows of a longer recording; each
            window is then a separate sample. 0: a recording is one sample.
    """

    shape: tuple[int, ...]
    resize: Resize = "exact"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    sample_rate_hz: int = 0
    max_values: int = _DEFAULT_MAX_VALUES
    value_range: tuple[float, float] = (0.0, 1.0)
    channel_order: ChannelOrder = "rgb"
    interpolation: Interpolation = "bilinear"
    shorter_side: int = 0
    fill: int = 0
    resample: bool = False
    mix: bool = False
    hop: int = 0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: a field is outside its range.
        """
        if not self.shape or not all(_is_count(side) and side > 0 for side in self.shape):
            raise _spec_error(f"shape must be positive sizes such as (3, 224, 224), got {self.shape!r}")
        choices = {"resize": Resize, "channel_order": ChannelOrder, "interpolation": Interpolation}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise _spec_error(
                    f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )
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
        self._check_options()
        if math.prod(self.shape) > _MAX_INPUT_VALUES:
            raise _spec_error(f"shape must have at most {_MAX_INPUT_VALUES} values, got {self.shape}")

    def _check_options(self) -> None:
        ends = _float32(self.value_range)
        if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] >= ends[1]:
            raise _spec_error(f"value_range must be two numbers such as (0, 255), got {self.value_range!r}")
        if not (_is_count(self.fill) and self.fill <= 255):
            raise _spec_error(f"fill must be a grey value from 0 to 255, got {self.fill!r}")
        if not all(isinstance(flag, bool) for flag in (self.resample, self.mix)):
            raise _spec_error(f"resample and mix must be true or false, got {self.resample!r}, {self.mix!r}")
        if not _is_count(self.hop) or (self.hop and (len(self.shape) != 2 or not self.sample_rate_hz)):
            raise _spec_error(
                f"hop must be a number of audio samples, and needs a sample rate, got {self.hop!r}"
            )
        if self.channel_order == "bgr" and self.shape[0] != 3:
            raise _spec_error(f"channel_order bgr needs three channels, but shape is {self.shape}")
        sides = self.shape[1:] or (0,)
        is_side = _is_count(self.shorter_side) and self.shorter_side <= _MAX_SIDE
        if not is_side or (self.shorter_side and (self.resize != "crop" or self.shorter_side < max(sides))):
            raise _spec_error(
                f"shorter_side needs resize 'crop' and must be from {max(sides)} to {_MAX_SIDE} pixels, got "
                f"{self.shorter_side!r}"
            )

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
        """The fields as JSON, for policies and model files; the newer ones only if they are not the default.

        Earlier versions read those specs that they understand, and reject others.
        """
        first, defaults = {field.name for field in fields(self)[:6]}, type(self)(self.shape)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name in first or value != getattr(defaults, name)
        }

    def describe(self) -> str:
        """The spec in the words of the command line, without what is not needed.

        >>> InputSpec((3, 224, 224), "crop", (0.5,), value_range=(0, 255), shorter_side=256).describe()
        '3x224x224 resize=crop shorter=256 range=0,255 mean=0.5 std=1'
        """
        words = ["x".join(map(str, self.shape)), f"resize={self.resize}"]
        words += [f"shorter={self.shorter_side}"] if self.shorter_side else []
        for name, word, default in (
            ("interpolation", "interpolation", "bilinear"), ("fill", "fill", 0), ("channel_order", "order", "rgb"),
        ):  # fmt: skip
            words += [f"{word}={getattr(self, name)}"] if getattr(self, name) != default else []
        for name, word in (("value_range", "range"), ("mean", "mean"), ("std", "std")):
            words.append(f"{word}={','.join(f'{value:g}' for value in getattr(self, name))}")
        words += [f"rate={self.sample_rate_hz}"] if self.sample_rate_hz else []
        words += [f"{name}=yes" for name in ("resample", "mix") if getattr(self, name)]
        words += [f"hop={self.hop}"] if self.hop else []
        return " ".join(words)

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

    def windows(self, data: bytes, media_type: str) -> Iterator[tuple[float, bytes]]:
        """The windows of a recording that is longer than one input, as WAV files of its own rate.

        They start every ``hop``; one more ends at the end of the recording, so nothing of it is lost.

        Yields:
            Start in seconds and encoded bytes; nothing for samples that are one input, or cannot be read.
        """
        if not (self.hop and media_type in _AUDIO_FORMATS) or _is_truncated_wav(data):
            return
        with suppress(soundfile.SoundFileError), soundfile.SoundFile(io.BytesIO(data)) as sound:
            scale = sound.samplerate / self.sample_rate_hz
            size, hop = math.ceil(self.shape[1] * scale), max(1, round(self.hop * scale))
            n_frames, rate = sound.frames, sound.samplerate
            if n_frames <= size or n_frames * sound.channels > self.max_values:
                return
            kind = sound.subtype if sound.subtype in _WHOLE_NUMBERS else "FLOAT"
            last = n_frames - size
            for start in dict.fromkeys((*range(0, last + 1, hop), last)):
                sound.seek(start)
                part = sound.read(size, dtype=_WHOLE_NUMBERS.get(kind, "float32"), always_2d=True)
                buffer = io.BytesIO()
                soundfile.write(buffer, part, rate, subtype=kind, format="WAV")
                yield start / rate, buffer.getvalue()

    def _check_count(self, count: int, what: str) -> None:
        if count > self.max_values:
            raise InputError(
                f"the sample has {count} {what}, more than {self.max_values}; raise max_values to accept it",
                code="sample-too-large",
            )

    def _converted(self, values: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Audio with the spec's channels and rate."""
        n_channels = self.shape[0]
        if len(values) != n_channels:
            if not self.mix or (len(values) > 1 and n_channels > 1):
                raise InputError(
                    f"the audio has {len(values)} channels, but the input spec says {n_channels}; mix=yes in the "
                    "input spec averages them to one",
                    code="sample-shape",
                )
            values = np.repeat(values.mean(0, keepdims=True, dtype=np.float32), n_channels, 0)
        if rate != self.sample_rate_hz:
            if not (self.resample and self.sample_rate_hz):
                raise InputError(
                    f"the audio is sampled at {rate} Hz, but the input spec says {self.sample_rate_hz} Hz; "
                    "resample=yes in the input spec converts it",
                    code="sample-shape",
                )
            self._check_count(values.size * self.sample_rate_hz // rate, "audio values")
            values = resampled(values, rate, self.sample_rate_hz)
        return values

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
        pixels = np.asarray(picture, dtype=np.float32)
        low, high = self.value_range
        if (low, high) == (0.0, 1.0):
            pixels = pixels / np.float32(255)
        elif (low, high) != (0.0, 255.0):  # bytes stay whole numbers, as models of integers need them
            pixels = pixels * np.float32((high - low) / 255) + np.float32(low)
        if self.channel_order == "bgr":
            pixels = pixels[:, :, ::-1]
        return pixels[None] if n_channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        if picture.size == (width, height) and self.shorter_side in {0, width, height}:
            return picture
        if self.resize == "exact":
            raise InputError(
                f"the image has {picture.width} x {picture.height} pixels, but the input spec says {width} x "
                f"{height}; set resize to 'stretch' or 'crop' to accept other sizes",
                code="sample-shape",
            )
        filtering = _RESAMPLING[self.interpolation]
        if self.resize == "stretch":
            return picture.resize((width, height), filtering)
        if self.resize == "letterbox":
            scale = min(width / picture.width, height / picture.height)
            fitted = (
                max(1, min(width, round(picture.width * scale))),
                max(1, min(height, round(picture.height * scale))),
            )
            whole = Image.new(picture.mode, (width, height), (self.fill,) * len(picture.getbands()))
            whole.paste(
                picture.resize(fitted, filtering), ((width - fitted[0]) // 2, (height - fitted[1]) // 2)
            )
            return whole
        if self.shorter_side:
            # as torchvision: the longer side is rounded down, the middle is rounded to even
            shorter = min(picture.size)
            size = tuple(self.shorter_side * side // shorter for side in picture.size)
            left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        else:
            scale = max(width / picture.width, height / picture.height)
            size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
            left, top = (size[0] - width) // 2, (size[1] - height) // 2
        if self.shorter_side and size[0] * size[1] <= _MAX_RESIZED:
            return picture.resize((size[0], size[1]), filtering).crop((left, top, left + width, top + height))
        # Pillow resizes only the part in the box. Resizing the whole image before the cut fills the memory
        # when its proportions are extreme: 1 x 60,000 pixels would become 224 x 13,440,000.
        across, down = picture.width / size[0], picture.height / size[1]
        box = (
            left * across,
            top * down,
            min((left + width) * across, picture.width),
            min((top + height) * down, picture.height),
        )
        return picture.resize((width, height), filtering, box)

    def _audio(self, data: bytes, media_type: str) -> NDArray[np.float32]:
        if len(self.shape) != 2:
            raise InputError(
                f"the sample is audio, but the input spec has no shape of (channels, samples): {self.shape}",
                code="sample-shape",
            )
        n_samples = self.shape[1]
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
        values = self._converted(values, rate)
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


def resampled(values: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Audio at another rate, by a low-pass filter of sinc form with a Kaiser window.

    Args:
        values: Shape (channels, samples).
        rate: Their rate in Hz.
        wanted: The new rate in Hz.

    Returns:
        Shape (channels, ceil(samples * wanted / rate)).

    Raises:
        InputError: the two rates have no ratio of small whole numbers.

    References:
        The filter of ``scipy.signal.resample_poly``: ten zero crossings on each side, beta 5.
    """
    divisor = math.gcd(rate, wanted)
    up, down = wanted // divisor, rate // divisor
    if max(up, down) > _MOST_PHASES:
        raise InputError(
            f"audio of {rate} Hz cannot be converted to {wanted} Hz, which would need {max(up, down)} filters; use a "
            "common rate",
            code="sample-shape",
        )
    widest, n_out = max(up, down), -(-values.shape[1] * up // down)
    half = 10 * widest
    places = np.arange(-half, half + 1)
    taps = np.sinc(places / widest) * np.kaiser(2 * half + 1, 5.0)
    taps *= up / taps.sum()
    n_taps = 2 * (half // up) + 2
    padded = np.pad(values, ((0, 0), (n_taps, n_taps)))
    found = np.empty((len(values), n_out), np.float32)
    # The signal with up - 1 zeros after each sample, filtered, at every down-th place: outputs whose place has the
    # same remainder use the same taps.
    for first in range(min(up, n_out)):
        rows = np.arange(first, n_out, up)
        centre = rows * down // up
        offsets = np.arange(-(n_taps // 2), n_taps // 2 + 1)
        distance = first * down - (first * down // up + offsets) * up
        inside = np.abs(distance) <= half
        weights = np.where(inside, taps[np.clip(distance + half, 0, 2 * half)], 0.0)
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(offsets), axis=1)
        for start in range(
            0, len(rows), _BLOCK
        ):  # a window per output would fill the memory for a long recording
            block = slice(start, start + _BLOCK)
            found[:, rows[block]] = windows[:, centre[block] + offsets[0] + n_taps] @ weights
    return found


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
