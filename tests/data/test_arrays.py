"""Shards of arrays, from the tar to the prepared view."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.module import ShardData
from pretrain.data.stream.loader import Loader
from pretrain.view.color import Prepare
from pretrain.view.spec import ViewSpec
from tests.data.shards import image_bytes, write_tar

VIEW = ViewSpec(6, pixels="uint16", full_scale=10_000, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.4, 0.3, 0.2), flip=0.0)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "TIFF")
    return file.getvalue()


def array_of(number: int, channels: int = 4) -> np.ndarray:
    """One colour: the sample's number, and its channels a thousand apart."""
    return np.full((9, 7, channels), number, np.uint16) + 1000 * np.arange(channels, dtype=np.uint16)


def loader(tmp_path: Path, members: list[tuple[str, bytes]], view: ViewSpec, **arguments: Any) -> Loader:
    (tmp_path / "d").mkdir(exist_ok=True)
    write_tar(tmp_path / "d" / "s.tar", members)
    data = ShardData(str(tmp_path / "d"), index_dir=str(tmp_path / "i"), **{"num_workers": 0} | arguments)
    return data.batches(0, 0, 5, [view])


@pytest.mark.parametrize("threads", [0, 2])
def test_four_channels_of_16_bits_pass_through(tmp_path: Path, threads: int) -> None:
    """Through a reader process, too: through shared memory, in their own type."""
    members = [(f"{n:03d}.npy", npy(array_of(n))) for n in range(20)]
    batches = list(itertools.islice(loader(tmp_path, members, VIEW, num_workers=threads), 4))
    keys = []
    for batch in batches:
        (view,) = batch.views
        assert view.dtype == torch.uint16
        assert view.shape == (1, 5, 4, 6, 6)
        numbers = torch.tensor([int(key) for key in batch.keys])
        expected = numbers[:, None] + 1000 * torch.arange(4)
        assert torch.equal(view[0].int(), expected[..., None, None].expand(-1, -1, 6, 6).int())
        prepared = Prepare([VIEW])(batch).views[0][0]
        mean, std = torch.tensor(VIEW.mean), torch.tensor(VIEW.std)
        normal = (expected / 10_000 - mean) / std
        torch.testing.assert_close(prepared, normal[..., None, None].expand(-1, -1, 6, 6), atol=1e-5, rtol=1e-5)
        keys += batch.keys
    assert sorted(keys) == [f"{n:03d}" for n in range(20)]


def test_16_bit_tiffs_are_not_cut_to_8(tmp_path: Path) -> None:
    members = [(f"{n:03d}.tif", tiff(np.full((9, 7), 257 * n + 3, np.uint16))) for n in range(10)]
    view = ViewSpec(6, pixels="uint16", full_scale=65535, mean=(0.5,), std=(0.25,))
    for batch in itertools.islice(loader(tmp_path, members, view), 2):
        for sample, key in enumerate(batch.keys):
            assert (batch.views[0][0, sample] == 257 * int(key) + 3).all()


def test_an_array_beside_a_picture_is_the_image_where_arrays_are_wanted(tmp_path: Path) -> None:
    """And beside a picture an array, an embedding say, is none where colours are wanted."""
    members = [(f"{n:03d}.{kind}", content) for n in range(5) for kind, content in (
        ("png", image_bytes(n)), ("npy", npy(array_of(n)))
    )]  # fmt: skip
    arrays = next(iter(loader(tmp_path, members, VIEW)))
    assert arrays.views[0].dtype == torch.uint16
    assert not arrays.replaced
    colours = next(iter(loader(tmp_path, members, ViewSpec(6))))
    assert colours.views[0].dtype == torch.uint8
    assert not colours.replaced


def test_samples_of_other_numbers_are_bad_with_a_clear_cause(tmp_path: Path) -> None:
    members = [(f"{n:03d}.npy", npy(array_of(n))) for n in range(20)]
    members[3] = ("003.npy", npy(array_of(3, channels=3)))
    members[7] = ("007.npy", npy(array_of(7).astype(np.float32)))
    members[9] = ("009.npy", npy(array_of(9))[:-5])
    batches = itertools.islice(loader(tmp_path, members, VIEW, max_bad_fraction=1.0), 4)
    bad = {one.key: (one.kind, one.cause) for batch in batches for one in batch.replaced}
    assert {key: kind for key, (kind, _) in bad.items()} == {
        "003": "wrong_channels",
        "007": "wrong_type",
        "009": "truncated",
    }
    assert bad["003"][1] == "shape (9, 7, 3): 3 channels (the last axis), not 4"
    assert bad["007"][1] == "its numbers are float32, not uint16"
