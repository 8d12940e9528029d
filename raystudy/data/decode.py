"""One image in, `size` x `size` RGB pixels out.

The policy, the same for every source: first frame; EXIF rotation applied; transparency composited on white; 16-bit
samples scaled to 8 bits; then the shorter side is brought to `size` (antialiased bilinear) and the centre is cut out.
`ImageOps.fit` does exactly the last two steps, so an exported model's preprocessing is one line of Pillow.
Colour profiles are ignored. JPEGs are decoded at full size: every image is decoded once, and Pillow's cheaper
reduced-size decoding would give other pixels.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Part of every store's key: raise it when a change here changes the pixels.
POLICY_VERSION = 1
MAX_MEGAPIXELS = 100
DIGEST_BYTES = 16

# Formats whose files announce themselves by their first bytes. Left out on purpose: EPS (runs Ghostscript on the
# file), TGA (has no signature, so that text may pass for an image), and what is not pictures.
_FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "MPO", "ICO", "ICNS", "PCX"),
    *("PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "DDS"),
)
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PRINTABLE = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*")
_SIGNATURES = (
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer instead of an image (run `git lfs pull`)"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "an HTML page instead of an image"),
    (re.compile(rb"\s*(<\?xml.*)?<svg", re.IGNORECASE | re.DOTALL), "an SVG drawing; convert it to PNG"),
    (re.compile(rb"%PDF"), "a PDF document instead of an image"),
    (re.compile(rb"%!PS"), "a PostScript file; convert it to PNG"),
    (re.compile(rb".{4}ftyp(heic|heix|mif1|hevc)", re.DOTALL), "a HEIC image; convert it to JPEG or PNG"),
    (re.compile(rb"\xff\xd8|\x89PNG|GIF8|BM|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL), "the image's header is damaged"),
)

Payload = bytes | NDArray[Any] | Image.Image
"""An image as its source stores it: encoded bytes, samples (H, W) or (H, W, 3) in uint8 or uint16, or a Pillow image."""


class UnreadableImage(Exception):
    """The image cannot be read; the message is the reason, in words for the user."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image after decoding.

    Attributes:
        pixels: (size, size, 3).
        digest: identifies the pixels.
        original_size: width and height in pixels before resizing, after EXIF rotation.
    """

    pixels: NDArray[np.uint8]
    digest: bytes
    original_size: tuple[int, int]


def decode(payload: Payload, image_size: int) -> DecodedImage:
    """Return the pixels of `payload` under the policy above.

    Raises:
        UnreadableImage: with the reason.
    """
    try:
        image = to_rgb(_open(payload))
        pixels = np.asarray(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR))
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly every built-in exception on damaged files
        raise UnreadableImage(_explain(error)) from error
    return DecodedImage(pixels, blake2b(pixels.tobytes(), digest_size=DIGEST_BYTES).digest(), image.size)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings (odd EXIF, large images): what matters of them is a reason of a bad image already.

    The filters belong to the whole process, hence one scope around all decoding threads instead of one in each.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the first frame of `image`, upright, as 8-bit RGB on white."""
    image.load()
    image = _upright(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(np.asarray(image))
    if image.mode == "F":
        raise UnreadableImage("floating-point samples have no agreed range; convert the image to 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _open(payload: Payload) -> Image.Image:
    if isinstance(payload, Image.Image):
        return payload
    if isinstance(payload, np.ndarray):
        return _from_16_bit(payload) if payload.dtype == np.uint16 else Image.fromarray(payload)
    if not payload:
        raise UnreadableImage("the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(payload), formats=_known_formats())
    except Image.DecompressionBombError as error:
        pixels = re.search(r"(\d+) pixels", str(error))
        raise _too_large(f"{int(pixels[1]) / 1e6:.0f} megapixels" if pixels else str(error)) from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(_describe(payload)) from error
    if image.width * image.height > MAX_MEGAPIXELS * 1e6:
        raise _too_large(f"{image.width} x {image.height} pixels")
    return image


def _too_large(size: str) -> UnreadableImage:
    return UnreadableImage(f"too large ({size}, not decoded; the limit is {MAX_MEGAPIXELS} megapixels)")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF around good pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _from_16_bit(samples: NDArray[Any]) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded; Pillow's own conversion clips at 255 instead."""
    if samples.size and not 0 <= int(samples.min()) <= int(samples.max()) <= 65535:
        raise UnreadableImage("32-bit samples beyond 0..65535 have no agreed range; convert the image to 8 or 16 bits")
    return Image.fromarray(((samples.astype(np.uint32) + 128) // 257).astype(np.uint8))


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Return the allowed formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _describe(data: bytes) -> str:
    """Say what a file is that no decoder recognises."""
    head = data[:512]
    for signature, description in _SIGNATURES:
        if signature.match(head):
            return description
    if b"\0" not in head and _PRINTABLE.fullmatch(head):
        return "text instead of an image"
    return "not an image in any known format"


def _explain(error: Exception) -> str:
    text = str(error).strip()
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated: {text}" if text else "truncated"
    return f"damaged: {text or type(error).__name__}"
