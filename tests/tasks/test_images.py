"""Any image file becomes the square RGB pixels that a person would expect."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from task_files import pixels, png, truncated_png

from matu.tasks.images import BadImageError, decode


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_right_size_is_kept_to_the_bit() -> None:
    image = pixels(3)
    assert np.array_equal(decode(png(image), 8), image)


def test_central_square_is_kept() -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (decode(png(wide), 4) == 200).all()
    assert (decode(png(wide.transpose(1, 0, 2)), 4) == 200).all()


def test_thin_image_needs_no_more_memory_than_itself() -> None:
    thin = np.full((1, 60_000, 3), 7, np.uint8)
    assert (decode(png(thin), 224) == 7).all()


def test_transparency_lies_over_white() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (decode(encoded(half), 4) == 127).all()  # 255 * (1 - 128/255)
    clear = Image.new("LA", (4, 4), (0, 0))
    assert (decode(encoded(clear), 4) == 255).all()


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (decode(encoded(image), 4) == [40, 50, 60]).all()
    assert (decode(encoded(image, transparency=1), 4) == 255).all()
    assert (decode(encoded(image, transparency=b"\xff\x00"), 4) == 255).all()


def test_grey_and_one_bit_images_are_spread_over_three_channels() -> None:
    assert (decode(encoded(Image.new("L", (4, 4), 77)), 4) == 77).all()
    assert (decode(encoded(Image.new("1", (4, 4), 1)), 4) == 255).all()


def test_sixteen_bits_keep_the_upper_eight() -> None:
    deep = Image.fromarray(np.full((4, 4), 0x1234, np.uint16))
    assert (decode(encoded(deep), 4) == 0x12).all()
    assert (decode(encoded(deep, "TIFF"), 4) == 0x12).all()


def test_cmyk_is_converted() -> None:
    cyan = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95), 8)
    assert cyan[..., 0].max() < 10
    assert cyan[..., 1:].min() > 240


def test_rotated_photograph_is_turned_upright() -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    upright = decode(encoded(image, exif=exif), 8)
    assert (upright[:, 4:] == 255).all()
    assert (upright[:, :4] == 0).all()


def test_large_jpeg_reduced_while_decoding_hardly_differs() -> None:
    slope = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(slope, (512, 1))] * 3, -1))
    reduced = decode(encoded(image, "JPEG", quality=95), 16).astype(int)
    whole = decode(encoded(image), 16).astype(int)
    assert np.abs(reduced - whole).max() <= 2


@pytest.mark.parametrize("data", [b"", b"not an image", truncated_png(), b"GIF89a"])
def test_damage_is_told(data: bytes) -> None:
    with pytest.raises(BadImageError, match=r"\w"):
        decode(data, 8)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(BadImageError, match="range is not known"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), 4)


def test_pixels_of_32_bits_are_refused() -> None:
    with pytest.raises(BadImageError, match="32-bit pixels: their range is not known"):
        decode(encoded(Image.fromarray(np.full((4, 4), 200, np.int32)), "TIFF"), 4)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_sixteen_bits_of_every_format_keep_the_upper_eight(kind: str) -> None:
    grey = Image.fromarray(np.full((4, 4), 200 << 8, np.uint16))
    assert (decode(encoded(grey, kind), 4) == 200).all()


def test_signed_sixteen_bits_are_no_32() -> None:
    data = encoded(Image.fromarray(np.full((4, 4), 100 << 8, np.uint16)), "TIFF")
    entry = (339).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")  # SampleFormat
    assert data.count(entry) <= 1
    image = Image.open(io.BytesIO(data))
    image.tag_v2[339] = 2
    kept = io.BytesIO()
    image.save(kept, "TIFF", tiffinfo=image.tag_v2)
    assert Image.open(io.BytesIO(kept.getvalue())).mode == "I"
    assert (decode(kept.getvalue(), 4) == 100).all()


def test_absurd_dimensions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match="decompression bomb"):
        decode(png(np.zeros((20, 20, 3), np.uint8)), 8)
    with warnings.catch_warnings():  # between once and twice the limit Pillow warns only
        warnings.simplefilter("error")
        assert decode(png(np.zeros((12, 12, 3), np.uint8)), 8).shape == (8, 8, 3)
