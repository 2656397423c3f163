"""Every kind of image becomes an upright RGB one, without warnings."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from ray_learngene.data.decode import readable, to_rgb
from ray_learngene.errors import UserError
from tests.data.image_files import encoded, photo


def decoded(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(io.BytesIO(data)) as image:
            rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return np.asarray(rgb).astype(int)


def close(left: np.ndarray, right: np.ndarray, tolerance: int = 0) -> bool:
    return left.shape == right.shape and int(np.abs(left - right).max()) <= tolerance


def test_rgb_is_unchanged() -> None:
    assert close(decoded(encoded(photo(), "PNG")), np.asarray(photo()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_has_three_equal_channels(kind: str) -> None:
    pixels = decoded(encoded(photo().convert("L"), kind))
    assert close(pixels[..., 0], pixels[..., 1]) and close(pixels[..., 0], pixels[..., 2])
    assert close(pixels[..., 0], np.asarray(photo().convert("L")), 12)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_range(kind: str) -> None:
    values = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)
    pixels = decoded(encoded(Image.fromarray(values), kind))
    assert close(pixels[..., 1], np.rint(values / 257).astype(int), 1)
    assert pixels.min() == 0 and pixels.max() == 255


def test_float_pixels_of_8_bits_are_read() -> None:
    values = np.linspace(0, 255, 16, dtype=np.float32).reshape(4, 4)
    assert close(decoded(encoded(Image.fromarray(values), "TIFF"))[..., 1], values.astype(int), 1)
    assert not decoded(encoded(Image.fromarray(0 * values), "TIFF")).any()


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), value, kind)
        for value, kind in ((0.5, "f4"), (-1, "f4"), (256, "f4"), (70_000, "i4"), (-1, "i4"))
    ],
)
def test_pixels_of_an_unknown_range_are_refused(values: np.ndarray) -> None:
    with (
        pytest.raises(UserError, match="pixels .*: convert it to 8 or 16 bits"),
        readable(lambda: "train/a.tif"),
    ):
        decoded(encoded(Image.fromarray(values), "TIFF"))


def test_cmyk() -> None:
    assert close(decoded(encoded(photo().convert("CMYK"), "JPEG", quality=95)), np.asarray(photo()), 12)


def test_palette_with_transparency() -> None:
    palette = photo().quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert close(decoded(encoded(palette, "PNG", transparency=bytes([0, 128] * 8))), expected)
    assert close(decoded(encoded(palette, "GIF", transparency=3)), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1"])
def test_other_modes(mode: str) -> None:
    image = photo().convert(mode)
    assert close(decoded(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encoded(photo(), "JPEG", quality=95, subsampling=0, exif=exif))
    assert close(pixels, np.rot90(np.asarray(photo()), turns), 12)


def test_exif_orientation_of_16_bit_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 128
    assert decoded(encoded(Image.fromarray(values), "PNG", exif=exif)).shape == (24, 16, 3)


def with_tags(data: bytes, *tags: bytes, more: bytes = b"") -> bytes:
    """Return a JPEG with an EXIF block of these tags, as a camera may write it."""
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + struct.pack("<I", 0) + more
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


TURNED = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<H", 6))
ODD_TAGS = {
    "a rational of -1/0": (struct.pack("<HHII", 0x011A, 10, 1, 38), struct.pack("<ii", -1, 0)),
    "a tag beyond the end": (struct.pack("<HHII", 0x010F, 2, 500, 9000), b""),
    "an unknown type": (struct.pack("<HHII", 0x010F, 99, 1, 0), b""),
}


@pytest.mark.parametrize("odd", ODD_TAGS)
def test_an_odd_tag_beside_the_orientation_refuses_no_image(odd: str) -> None:
    tag, more = ODD_TAGS[odd]
    plain = encoded(photo(), "JPEG", quality=95, subsampling=0)
    with Image.open(io.BytesIO(with_tags(plain, TURNED, tag, more=more))) as image:
        pixels = np.asarray(to_rgb(image)).astype(int)
    assert close(pixels, np.rot90(np.asarray(photo()), 3), 12)


def test_exif_that_cannot_be_parsed_says_nothing_about_the_pixels() -> None:
    plain = encoded(photo(), "JPEG", quality=95, subsampling=0)
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", 14) + b"Exif\0\0XX*\0ab" + plain[2:]
    assert close(decoded(data), np.asarray(photo()), 12)


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", encoded(photo(size=(200, 200)))[:900], encoded(photo(size=(200, 200)), "PNG")[:900]],
    ids=["empty", "text", "truncated JPEG", "truncated PNG"],
)
def test_damaged_images_are_named_in_one_line(data: bytes) -> None:
    with (
        pytest.raises(UserError, match=r"cannot read image train/a\.jpg: .*remove or replace it") as caught,
        readable(lambda: "train/a.jpg"),
        Image.open(io.BytesIO(data)) as image,
    ):
        to_rgb(image)
    assert "\n" not in str(caught.value) and "BytesIO" not in str(caught.value)
