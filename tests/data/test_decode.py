"""Bytes to pixels. `test_pixels_come_out_as_they_went_in` is the example to read first."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepreduce.data.decode import Batch, check_workers, decode
from deepreduce.errors import DataError, UsageError

from .small import encoded, noise, refusal


def run(items: list[bytes | Path | None], **options: int) -> np.ndarray:
    return decode([Batch(items, lambda row: f"row {row}")], len(items), split="train", **options)[0]


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes with any size in its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5)], ids=["rgb", "grey"])
def test_pixels_come_out_as_they_went_in(form: str, shape: tuple[int, ...]) -> None:
    images = noise(3, shape=shape)
    expected = images.transpose(0, 3, 1, 2) if len(shape) == 3 else images[:, None]
    assert np.array_equal(run([encoded(image, form) for image in images]), expected)


def test_lossless_webp_as_in_cifar() -> None:
    images = noise(3)
    items: list[bytes | Path | None] = [saved(Image.fromarray(image), "WEBP", lossless=True) for image in images]
    assert np.array_equal(run(items), images.transpose(0, 3, 1, 2))


def test_the_odd_one_is_blamed_though_it_comes_first() -> None:
    small, large = (encoded(image) for image in (noise(1, shape=(2, 3))[0], noise(1, shape=(4, 5))[0]))
    with pytest.raises(DataError) as caught:
        run([small, large, large, b"no image", large])
    assert "2 of 5 images that do not: row 0 is 1x2x3 (greyscale), while 3 of 5 images are 1x4x5" in str(caught.value)
    assert "row 3 cannot be decoded" in str(caught.value) and "row 1 " not in str(caught.value)
    with pytest.raises(DataError, match=r"row 0 is 1x2x3 \(greyscale\), as are 1 more, while 3 of 5"):
        run([small, large, large, small, large])


def test_order_does_not_depend_on_threads_or_batches() -> None:
    images = noise(700, shape=(2, 3))
    items = [encoded(image) for image in images]
    for workers in (1, 5):
        assert np.array_equal(run(items, workers=workers)[:, 0], images)
    parts = [Batch(items[:13], str), Batch([], str), Batch(items[13:], str)]
    assert np.array_equal(decode(parts, 700, split="train")[0][:, 0], images)


def test_files_are_read_where_they_lie(tmp_path: Path) -> None:
    images = noise(2)
    for row, image in enumerate(images):
        (tmp_path / f"{row}.png").write_bytes(encoded(image))
    assert np.array_equal(run([tmp_path / "0.png", tmp_path / "1.png"]), images.transpose(0, 3, 1, 2))


def test_palette_images_become_rgb_and_are_counted() -> None:
    image = Image.fromarray(noise(1)[0]).quantize(16)
    pixels, palettes = decode([Batch([saved(image)] * 3, str)], 3, split="train")
    assert palettes == 3
    assert np.array_equal(pixels[2], np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_undecodable_rows_are_named_and_counted() -> None:
    items: list[bytes | Path | None] = [encoded(image) for image in noise(20)]
    for row in (0, 1, 4, 7, 9, 11, 13):
        items[row] = b"no image"
    message = refusal(lambda: run(items))
    assert "7 of 20 images" in message
    assert "row 0 cannot be decoded (not an image of a known format)" in message
    assert "row 9" in message
    assert "row 11" not in message
    assert "and 2 more" in message
    assert "Where: train split, row 0" in message


def test_nothing_decodable_at_all_is_refused() -> None:
    assert "2 of 2 images" in refusal(lambda: run([b"a", b""]))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_no_truncated_image_passes_with_other_pixels(form: str) -> None:
    whole = encoded(noise(1, shape=(16, 16, 3))[0], form)
    expected = run([whole])
    for length in range(0, len(whole), 5):
        try:
            pixels = run([whole[:length]], workers=1)
        except DataError as error:
            assert "row 0 cannot be decoded" in str(error)
        else:
            # Only a trailer without pixels is missing: checksums and the end mark of PNG, the end mark of GIF.
            assert np.array_equal(pixels, expected)
            assert len(whole) - length <= 20


def test_missing_bytes_are_refused() -> None:
    message = refusal(lambda: run([encoded(noise(1)[0]), None]))
    assert "row 1 has no bytes (null)" in message
    assert "not their paths" in message


def test_another_size_is_refused() -> None:
    message = refusal(lambda: run([encoded(noise(1)[0])] * 3 + [encoded(noise(1, shape=(6, 5, 3))[0])]))
    assert "row 3 is 3x6x5 (RGB), while row 0 is 3x4x5 (RGB)" in message


def test_greyscale_among_rgb_is_refused() -> None:
    message = refusal(lambda: run([encoded(noise(1)[0]), encoded(noise(1, shape=(4, 5))[0])]))
    assert "row 1 is 1x4x5 (greyscale), while row 0 is 3x4x5 (RGB)" in message


@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"), ("I;16", "PNG")]
)
def test_other_modes_are_refused(mode: str, form: str) -> None:
    image = Image.new("I;16", (5, 4)) if mode == "I;16" else Image.fromarray(noise(1)[0]).convert(mode)
    message = refusal(lambda: run([encoded(noise(1)[0]), saved(image, form)]))
    assert f"row 1 has the mode {mode}" in message
    assert "8-bit greyscale or RGB" in message


def test_a_palette_with_transparency_is_refused() -> None:
    image = Image.fromarray(noise(1)[0]).quantize(16)
    message = refusal(lambda: run([saved(image, transparency=3)]))
    assert "mode P with transparency" in message


@pytest.mark.parametrize("side", [4097, 12_000, 100_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    message = refusal(lambda: run([encoded(noise(1)[0]), png_that_claims(side, side)]))
    assert "row 1 has more than 16,777,216 pixels" in message


def test_formats_that_start_other_programs_are_not_opened() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n"
    assert "not an image of a known format" in refusal(lambda: run([script]))


def test_images_beyond_memory_are_refused() -> None:
    batch = Batch([encoded(noise(1)[0])], str)
    assert "must fit into memory" in refusal(lambda: decode([batch], 2**55, split="train"))


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_a_senseless_number_of_workers_is_refused(workers: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        check_workers(workers)
