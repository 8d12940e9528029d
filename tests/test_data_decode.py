from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raystudy.data.decode import UnreadableImage, decode

RED = (255, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, size: int = 4) -> NDArray[np.uint8]:
    return decode(data, size).pixels


def flat(mode: str, colour: Any, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = flat("P", 1)
    image.putpalette([9, 9, 9, *colour])
    return image


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, np.uint16))


ONE_COLOUR = {
    "rgb": (encode(flat("RGB", (10, 20, 30))), (10, 20, 30)),
    "bmp": (encode(flat("RGB", (10, 20, 30)), "BMP"), (10, 20, 30)),
    "webp": (encode(flat("RGB", (10, 20, 30)), "WEBP", lossless=True), (10, 20, 30)),
    "tiff": (encode(flat("RGB", (10, 20, 30)), "TIFF"), (10, 20, 30)),
    "opaque_rgba": (encode(flat("RGBA", (10, 20, 30, 255))), (10, 20, 30)),
    "transparent_rgba": (encode(flat("RGBA", (10, 20, 30, 0))), (255, 255, 255)),
    "half_transparent_rgba": (encode(flat("RGBA", (0, 0, 0, 51))), (204, 204, 204)),
    "grey_with_alpha": (encode(flat("LA", (0, 51))), (204, 204, 204)),
    "palette": (encode(palette((10, 20, 30))), (10, 20, 30)),
    "palette_with_transparency": (encode(palette((10, 20, 30)), transparency=1), (255, 255, 255)),
    "rgb_with_transparent_colour": (encode(flat("RGB", (10, 20, 30)), transparency=(10, 20, 30)), (255, 255, 255)),
    "one_bit": (encode(flat("1", 1)), (255, 255, 255)),
    "grey": (encode(flat("L", 77)), (77, 77, 77)),
    "grey16_full": (encode(grey16(65535)), (255, 255, 255)),
    "grey16_middle": (encode(grey16(128 * 257)), (128, 128, 128)),
    "grey16_rounds": (encode(grey16(300)), (1, 1, 1)),
    "grey16_tiff": (encode(grey16(128 * 257), "TIFF"), (128, 128, 128)),
    "grey16_pgm": (b"P5 4 4 65535\n" + struct.pack(">H", 128 * 257) * 16, (128, 128, 128)),
    "cmyk": (encode(flat("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    "cmyk_jpeg": (encode(flat("CMYK", (0, 0, 0, 255)), "JPEG", quality=100), (0, 0, 0)),
}


@pytest.mark.parametrize("name", ONE_COLOUR)
def test_every_mode_becomes_the_rgb_colour_it_shows(name: str) -> None:
    data, colour = ONE_COLOUR[name]
    pixels = pixels_of(data)
    assert pixels.shape == (4, 4, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == colour).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8] = RED  # only the top left is red: tells all eight orientations but mirror pairs apart
    upright[:8, 8:] = (0, 0, 255)
    stored_by = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_by[orientation](upright)))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    shown = pixels_of(encode(stored, kind, exif=exif, **options), 16)
    assert np.abs(shown.astype(int) - upright).max() < 8


def test_damaged_exif_does_not_spoil_good_pixels() -> None:
    assert (pixels_of(encode(flat("RGB", RED), exif=b"Exif\0\0garbage")) == RED).all()


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [flat("RGB", RED), flat("RGB", (0, 255, 0))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels_of(data) == RED).all()


def test_resizing_is_exactly_pillows_fit() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8))
    expected = np.asarray(ImageOps.fit(noise, (16, 16), Image.Resampling.BILINEAR))
    decoded = decode(encode(noise), 16)
    assert (decoded.pixels == expected).all()
    assert decoded.original_size == (61, 37)


def test_the_centre_is_cut_out() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert (decode(wide, 8).pixels == 200).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3)])
def test_tiny_and_thin_images_are_enlarged(shape: tuple[int, ...]) -> None:
    assert (decode(np.full(shape, 9, np.uint8), 8).pixels == 9).all()


def test_equal_pixels_have_equal_digests_whatever_the_format() -> None:
    image = flat("RGB", (10, 20, 30))
    assert decode(encode(image), 4).digest == decode(encode(image, "BMP"), 4).digest
    assert decode(encode(image), 4).digest != decode(encode(flat("RGB", RED)), 4).digest


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
UNREADABLE = {
    "empty": (b"", "empty (0 bytes)"),
    "truncated_jpeg": (encode(NOISE, "JPEG")[:-500], "truncated"),
    "truncated_png": (encode(NOISE)[:-500], "truncated"),
    "truncated_webp": (encode(NOISE, "WEBP")[:-500], ""),
    "text": (b"hello, I am a photograph\n" * 9, "text instead of an image"),
    "html": (b"<!DOCTYPE html><html>404</html>", "HTML page"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG"),
    "git_lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "pdf": (b"%PDF-1.7 ...", "PDF"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    "zeros": (bytes(1000), "not an image"),
    "only_a_signature": (b"\xff\xd8\xff", "header is damaged"),
    "600_megapixels": (png_header(30_000, 20_000), "600 megapixels"),
    "120_megapixels": (png_header(12_000, 10_000), "12000 x 10000 pixels"),
    "float": (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    "32_bit": (encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "32-bit"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_images_are_refused_with_a_readable_reason(name: str) -> None:
    data, words = UNREADABLE[name]
    with pytest.raises(UnreadableImage) as caught:
        decode(data, 8)
    reason = str(caught.value)
    assert words in reason
    assert "0x" not in reason  # no address of an object: reasons are stored, and must be reproducible
    assert "\n" not in reason
