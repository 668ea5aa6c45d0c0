"""Encoded images to pixels: bytes in, one uint8 array out, every refusal with its row."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deepreduce._cores import available_cores
from deepreduce.errors import DataError, UsageError, problem

MAX_PIXELS = 1 << 24
"""Largest image that is decoded, in pixels (4096 by 4096); a few hundred bytes can claim far more, and fill the memory
of the computer."""

# Named one by one: Pillow also opens formats that start other programs (EPS) or reach for further files.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")

_CHUNK = 256
_NAMED = 5


@dataclass(frozen=True)
class Batch:
    """Encoded images that stand together in a source.

    Attributes:
        items: bytes of a file, or where the file is; None where the source has no bytes.
        where: file and row of an item, for errors.
    """

    items: Sequence[bytes | Path | None]
    where: Callable[[int], str]


class _RefusedError(Exception):
    """One image that cannot be taken: what is wrong with it, and what mends it; its size if that is all."""

    def __init__(self, reason: str, remedy: str, *, size: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.size = size


@dataclass
class _Report:
    """What one thread found in its chunk."""

    refused: list[tuple[str, _RefusedError]]
    palettes: int = 0


def check_workers(workers: int | None) -> int:
    """Return the number of decoding threads: `workers`, or by default one per core, up to eight."""
    if workers is None:
        return min(8, available_cores())
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UsageError(
            problem(
                "workers must be an integer of at least 1",
                got=repr(workers),
                remedy="leave it out, or give 2",
                where="workers",
            )
        )
    return workers


def decode(
    batches: Iterable[Batch], count: int, *, split: str, workers: int | None = None
) -> tuple[UInt8[np.ndarray, "count channels height width"], int]:
    """Decode the images of a split, in order.

    Images stay as they are stored: greyscale (1 channel) or RGB (3), 8 bits; only palette images are converted, to
    RGB, as their numbers mean nothing else. No orientation tag is applied, and of an animation the first frame counts.

    Args:
        batches: the images; one batch is held in memory at a time.
        count: images in all batches, at least 1.
        split: name for errors.
        workers: threads (default: one per processor, at most 8); Pillow decodes without Python's lock.

    Returns:
        Pixels, and how many images had a palette.

    Raises:
        DataError: an image cannot be decoded, is too large, has another size, channel count or mode than the first.
    """
    from PIL import Image

    Image.init()  # loads the decoders here, not in several threads at once
    workers = check_workers(workers)
    pixels: np.ndarray | None = None
    first = ""
    reports: list[_Report] = []
    offset = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for batch in batches:
            begin = 0
            while pixels is None and begin < len(batch.items):
                try:
                    shape = _pixels(batch.items[begin])[0].shape
                except _RefusedError as error:
                    reports.append(_Report([(batch.where(begin), error)]))
                    begin += 1
                    continue
                pixels, first = _room(count, shape, split), batch.where(begin)
            if pixels is not None:
                jobs = [
                    pool.submit(_decode_chunk, batch, pixels, offset, start, first)
                    for start in range(begin, len(batch.items), _CHUNK)
                ]
                reports += [job.result() for job in jobs]
            offset += len(batch.items)
    finally:
        # On Ctrl-C the chunks that have not begun are dropped.
        pool.shutdown(wait=True, cancel_futures=True)
    refused = [entry for report in reports for entry in report.refused]
    if refused or pixels is None:
        raise _refusal(_blamed(refused, count, first, pixels), count, split)
    return pixels, sum(report.palettes for report in reports)


def _room(count: int, shape: tuple[int, ...], split: str) -> UInt8[np.ndarray, "count channels height width"]:
    try:
        return np.empty((count, *shape), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise DataError(
            problem(
                "the decoded images must fit into memory",
                got=f"{count} images of {_size(shape)}: {count * int(np.prod(shape)):,} bytes",
                remedy="scale the images down before",
                where=f"{split} split",
            )
        ) from error


def _decode_chunk(batch: Batch, pixels: np.ndarray, offset: int, start: int, first: str) -> _Report:
    report = _Report([])
    for item in range(start, min(start + _CHUNK, len(batch.items))):
        try:
            image, palette = _pixels(batch.items[item])
            if image.shape != pixels.shape[1:]:
                raise _RefusedError(
                    f"is {_size(image.shape)}, while {first} is {_size(pixels.shape[1:])}",
                    "bring all images to one size and one channel count",
                    size=_size(image.shape),
                )
        except _RefusedError as error:
            report.refused.append((batch.where(item), error))
            continue
        pixels[offset + item] = image
        report.palettes += palette
    return report


def _pixels(item: bytes | Path | None) -> tuple[UInt8[np.ndarray, "channels height width"], bool]:
    """Decode one image; the flag says whether it had a palette."""
    from PIL import Image

    if item is None:
        # A path inside a parquet file is never followed: the file could name anything on this computer.
        raise _RefusedError("has no bytes (null)", "store the images' bytes in the file, not their paths")
    bomb = _RefusedError(f"has more than {MAX_PIXELS:,} pixels", "scale the images down before")
    try:
        with Image.open(item if isinstance(item, Path) else io.BytesIO(item), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise bomb
            palette = image.mode == "P"
            if image.mode not in ("L", "RGB", "P") or (palette and "transparency" in image.info):
                raise _RefusedError(
                    f"has the mode {image.mode}{' with transparency' if palette else ''}",
                    "save the images as 8-bit greyscale or RGB; what lies behind transparent pixels is yours to choose",
                )
            image.load()  # before NumPy asks for the buffer, which reports a truncated file less clearly
            array = np.asarray(image.convert("RGB") if palette else image)
    except _RefusedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise bomb from error
    except Exception as error:  # decoders raise almost anything on damaged bytes: OSError, SyntaxError, struct.error, …
        # Pillow's message may quote the address of a buffer, which says nothing.
        reason = "not an image of a known format" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise _RefusedError(
            f"cannot be decoded ({reason})", "replace the damaged images, or fetch the source again"
        ) from error
    return (array[None] if array.ndim == 2 else array.transpose(2, 0, 1)), palette


def _size(shape: tuple[int, ...]) -> str:
    """Return 'channels x height x width' as a person reads it."""
    return f"{'x'.join(map(str, shape))} ({'greyscale' if shape[0] == 1 else 'RGB'})"


def _blamed(
    refused: list[tuple[str, _RefusedError]], count: int, first: str, pixels: np.ndarray | None
) -> list[tuple[str, _RefusedError]]:
    """Blame the first image where most others have one other size: it is then the odd one, not they."""
    sizes = Counter(error.size for _, error in refused if error.size is not None)
    if pixels is None or not sizes:
        return refused
    usual, others = sizes.most_common(1)[0]
    like_the_first = count - len(refused)
    if others <= like_the_first:
        return refused
    more = f", as are {like_the_first - 1} more" if like_the_first > 1 else ""
    odd = _RefusedError(
        f"is {_size(pixels.shape[1:])}{more}, while {others} of {count} images are {usual}",
        "bring all images to one size and one channel count",
    )
    return [(first, odd), *(entry for entry in refused if entry[1].size != usual)]


def _refusal(refused: list[tuple[str, _RefusedError]], count: int, split: str) -> DataError:
    named = "; ".join(f"{where} {error.reason}" for where, error in refused[:_NAMED])
    more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    remedies = dict.fromkeys(error.remedy for _, error in refused)
    return DataError(
        problem(
            "every image must decode to 8-bit greyscale or RGB pixels, all of one size and channel count",
            got=f"{len(refused)} of {count} images that do not: {named}{more}",
            remedy="; ".join(remedies),
            where=f"{split} split, {refused[0][0]}" if refused else f"{split} split",
        )
    )
