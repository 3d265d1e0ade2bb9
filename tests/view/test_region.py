"""Parts and smaller scales of images: the same crops as of the whole image, or such as are said to differ."""

from __future__ import annotations

import io
import random
import resource
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pretrain.view import region
from pretrain.view.crop import Box, crop
from pretrain.view.decode import decode
from pretrain.view.pixels import DecodeError
from pretrain.view.region import decode_for, scale_factor, scaled_box
from pretrain.view.spec import ViewSpec

SIZES = [(1, 1), (1, 40), (40, 1), (8, 8), (17, 33), (67, 91), (128, 65)]
KINDS: dict[str, dict[str, Any]] = {
    "444": {"subsampling": "4:4:4"},
    "422": {"subsampling": "4:2:2"},
    "420": {"subsampling": "4:2:0"},
    "411": {"subsampling": "4:1:1"},
    "440": {},
    "grey": {},
    "grey 2x2": {},
    "rgb": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 3, "subsampling": "4:2:0"},
    "restarts in rows": {"restart_marker_rows": 1, "subsampling": "4:2:2"},
    "best": {"quality": 100, "subsampling": "4:2:0", "optimize": True},
    "progressive": {"progressive": True},
}


@pytest.fixture
def extension() -> Any:
    if region.extension is None:
        pytest.skip("pretrain_region is not installed: make native")
    return region.extension


def picture(height: int, width: int) -> np.ndarray:
    """Something with edges and colours everywhere, each of a few pixels."""
    coarse = np.random.default_rng(height * width).integers(
        256, size=(-(-height // 3), -(-width // 3), 3), dtype=np.uint8
    )
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(kind: str, height: int, width: int) -> bytes:
    pixels = picture(height, width)
    if kind == "440":
        return simplejpeg.encode_jpeg(pixels, 85, "RGB", "440")
    if kind.startswith("grey"):
        data = bytearray(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), 85, "gray", "Gray"))
        if kind == "grey 2x2":  # of one component, its sampling says nothing
            data[data.index(b"\xff\xc0") + 11] = 0x22
        return bytes(data)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 85} | KINDS[kind])
    return file.getvalue()


def any_boxes(height: int, width: int, count: int, seed: int = 0) -> Iterator[Box]:
    draw = random.Random(seed)
    for _ in range(count):
        h, w = draw.randint(1, height), draw.randint(1, width)
        yield Box(draw.randint(0, height - h), draw.randint(0, width - w), h, w)


def inside(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def of_the_part(extension: Any, data: bytes, box: Box) -> np.ndarray | None:
    """The box's pixels, straight from the extension."""
    found = extension.decode(data, *box)
    if found is None:
        return None
    buffer, left, width = found
    return np.frombuffer(buffer, np.uint8).reshape(box.height, width, 3)[:, box.left - left :][:, : box.width]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "progressive"])
def test_a_part_is_the_whole_images_to_the_bit(extension: Any, kind: str) -> None:
    for height, width in SIZES:
        data = encoded(kind, height, width)
        whole = decode(data)
        rows = [Box(top, 0, min(2, height - top), width) for top in range(height)]
        columns = [Box(0, left, height, 1) for left in range(width)]
        for box in [*rows, *columns, *any_boxes(height, width, 40)]:
            part = of_the_part(extension, data, box)
            assert part is not None, (height, width, box)
            assert np.array_equal(part, inside(whole, box)), (height, width, box)


def test_parts_of_photographs_are_theirs_to_the_bit(extension: Any, data_dir: Path) -> None:
    count = 0
    for path in sorted((data_dir / "photos").glob("*.tar")):
        with tarfile.open(path) as tar:
            files = [tar.extractfile(member) for member in tar if member.name.endswith((".jpg", ".jpeg"))]
            for number, file in enumerate(files):
                assert file is not None
                data = file.read()
                whole = decode(data)
                for box in any_boxes(*whole.shape[:2], count=3, seed=number):
                    part = of_the_part(extension, data, box)
                    assert part is not None
                    assert np.array_equal(part, inside(whole, box))
                count += 1
    assert count == 200


def outcome(data: bytes, box: Box) -> np.ndarray | str:
    """The box's pixels as `decode_for` yields them, or why there are none."""
    try:
        pixels, (found,) = decode_for(data, lambda height, width: [box])
        return inside(pixels, found)
    except DecodeError as failure:
        return str(failure)


@pytest.mark.parametrize("kind", ["420", "444", "restarts", "progressive"])
def test_damaged_files_are_judged_as_without_it(extension: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Cut off below the box, too: which samples count as broken must not depend on what is installed."""
    warnings.simplefilter("ignore")
    draw = random.Random(0)
    data, box = encoded(kind, 90, 70), Box(5, 9, 30, 40)
    cases = [data[: draw.randrange(len(data) // 3, len(data))] for _ in range(60)]
    for _ in range(140):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            broken[draw.randrange(2, len(broken))] ^= 1 << draw.randrange(8)
        cases.append(bytes(broken))
    kept = 0
    for case in cases:
        with_it = outcome(case, box)
        with monkeypatch.context() as without:
            without.setattr(region, "extension", None)
            assert np.array_equal(with_it, outcome(case, box))
        kept += not isinstance(with_it, str)
    assert 10 < kept < 190


def test_what_is_not_usual_is_refused_by_it_and_decoded_whole(extension: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, box = Image.fromarray(picture(60, 80)), Box(3, 5, 20, 20)
    options: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", image, {"progressive": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("JPEG", image, {"exif": exif}),
        ("PNG", image, {}),
    ]
    for kind, one, named in options:
        file = io.BytesIO()
        one.save(file, kind, **named)
        data = file.getvalue()
        pixels, boxes = decode_for(data, lambda height, width: [box])
        assert boxes == [box]
        assert np.array_equal(pixels, decode(data))
        assert "exif" in named or kind == "PNG" or extension.decode(data, *box) is None
    odd = bytearray(encoded("420", 60, 80))
    odd[odd.index(b"\xff\xc0") + 11] = 0x14  # 4:4:1, for which simplejpeg has no name
    pixels, ((top, left, height, width),) = decode_for(bytes(odd), lambda height, width: [box])
    assert np.array_equal(pixels[top : top + height, left : left + width], decode(bytes(odd))[3:23, 5:25])


def test_only_rectangles_of_the_image_are_decoded(extension: Any) -> None:
    data = encoded("420", 30, 40)
    assert extension.decode(data, 29, 39, 1, 1) is not None
    for box in [(30, 0, 1, 1), (0, 40, 1, 1), (29, 0, 2, 1), (0, 39, 1, 2), (0, 0, 0, 1), (0, 0, 1, 0)]:
        assert extension.decode(data, *box) is None
    assert extension.decode(data, 2**32 - 1, 2**32 - 1, 2, 2) is None
    assert extension.decode(b"", 0, 0, 1, 1) is None
    with pytest.raises(TypeError):
        extension.decode("text", 0, 0, 1, 1)


def test_it_is_used_where_it_saves_something(monkeypatch: pytest.MonkeyPatch, extension: Any) -> None:
    asked: list[tuple[int, ...]] = []

    class Spy:
        def decode(self, data: bytes, *box: int) -> Any:
            asked.append(box)
            return extension.decode(data, *box)

    monkeypatch.setattr(region, "extension", Spy())
    data = encoded("420", 100, 100)
    pixels, boxes = decode_for(data, lambda height, width: [Box(10, 20, 30, 30), Box(35, 15, 10, 10)])
    assert asked == [(10, 15, 35, 35)]
    assert pixels.shape == (35, 35, 3)
    assert boxes == [Box(0, 5, 30, 30), Box(25, 0, 10, 10)]
    assert pixels.flags.writeable
    decode_for(data, lambda height, width: [Box(0, 0, 50, 50), Box(50, 4, 50, 96)])
    assert len(asked) == 1  # they span the image


def test_it_lets_its_memory_go(extension: Any) -> None:
    data = encoded("420", 128, 65)
    held = sys.getrefcount(data)
    cases = [(data, 0), (data, 60), (data[:-300], 0), (data[:400], 0), (b"", 0)]
    used = []
    for _ in range(2):
        for _ in range(1500):
            for case, top in cases:
                extension.decode(case, top, 0, 60, 60)
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # kB
    assert used[1] - used[0] < 8_000  # 1500 times any one of its buffers is more
    del cases, case
    assert sys.getrefcount(data) == held


def test_without_it_images_are_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "extension", None)
    data, box = encoded("420", 60, 80), Box(1, 2, 3, 4)
    pixels, boxes = decode_for(data, lambda height, width: [box] if (height, width) == (60, 80) else [])
    assert boxes == [box]
    assert np.array_equal(pixels, decode(data))


def large(pixels: np.ndarray, side: tuple[int, int]) -> bytes:
    """A smooth JPEG of so many pixels."""
    image = Image.fromarray(pixels).resize(side[::-1], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


def test_the_scale_leaves_every_box_as_large_as_its_view() -> None:
    view = [(224, 224)]
    assert scale_factor((1000, 1000), [Box(0, 0, 1000, 1000)], view) == 4
    assert scale_factor((999, 1000), [Box(0, 0, 999, 1000)], view) == 1  # less than a million pixels
    assert scale_factor((2000, 2000), [Box(8, 8, 1792, 1792)], view) == 8
    assert scale_factor((2000, 2000), [Box(8, 8, 1792, 1780)], view) == 4
    assert scale_factor((2000, 2000), [Box(0, 0, 448, 448)], view) == 2
    assert scale_factor((2000, 2000), [Box(0, 0, 448, 446)], view) == 1
    assert scale_factor((2000, 2000), [Box(0, 0, 1800, 1800), Box(0, 0, 200, 200)], [*view, (96, 96)]) == 2


def test_scaled_boxes_lie_in_the_scaled_image_half_a_pixel_off_at_most() -> None:
    for factor in (2, 4, 8):
        for box in any_boxes(1001, 1203, 300, seed=factor):
            small = scaled_box(box, factor)
            assert 0 <= small.top <= small.top + small.height <= -(-1001 // factor)
            assert 0 <= small.left <= small.left + small.width <= -(-1203 // factor)
            assert abs(small.top - box.top / factor) <= 0.5
            assert abs(small.top + small.height - (box.top + box.height) / factor) <= 0.5
            assert abs(small.left - box.left / factor) <= 0.5
            assert abs(small.left + small.width - (box.left + box.width) / factor) <= 0.5


@pytest.mark.parametrize(("side", "factor"), [(224, 4), (448, 2), (120, 8), (600, 1)])
def test_large_images_are_scaled_by_powers_of_two_on_request_alone(side: int, factor: int) -> None:
    data, spec = large(picture(40, 48), (1001, 1203)), ViewSpec(side)
    box = Box(3, 5, 990, 1101)
    whole, (same,) = decode_for(data, lambda height, width: [box])
    pixels, (found,) = decode_for(data, lambda height, width: [box], [(side, side)])
    assert np.array_equal(inside(whole, same), inside(decode(data), box))
    assert found == (scaled_box(box, factor) if factor > 1 else same)
    assert factor == 1 or pixels.shape == (-(-1001 // factor), -(-1203 // factor), 3)
    error = crop(pixels, found, spec).double() - crop(whole, same, spec).double()
    decibels = float(10 * np.log10(255**2 / max(1e-6, error.square().mean().item())))
    assert decibels > (90 if factor == 1 else 32)
    if factor > 1:
        elsewhere = found._replace(left=max(0, found.left - 2))
        worse = crop(pixels, elsewhere, spec).double() - crop(whole, same, spec).double()
        assert worse.square().mean() > 2 * error.square().mean()  # it is the box that was meant


def test_small_and_other_images_and_damaged_ones_are_not_scaled() -> None:
    def views_of(data: bytes) -> np.ndarray:
        return decode_for(data, lambda height, width: [Box(0, 0, height, width)], [(64, 64)])[0]

    file = io.BytesIO()
    Image.fromarray(picture(1000, 1000)).save(file, "PNG", compress_level=1)
    for data in (large(picture(40, 48), (800, 900)), file.getvalue()):
        assert np.array_equal(views_of(data), decode(data))
    whole = large(picture(40, 48), (1001, 1203))
    assert views_of(whole).shape == (126, 151, 3)
    with pytest.raises(DecodeError):
        views_of(whole[: len(whole) // 2])
