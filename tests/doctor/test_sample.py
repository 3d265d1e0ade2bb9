"""Samples of shards as the doctor reads them."""

from __future__ import annotations

from pathlib import Path

from pretrain.data.shard.index import open_index
from pretrain.data.store.source import access_of
from pretrain.doctor.sample import Samples
from tests.data.shards import write_shards
from tests.data.store.servers import serving


def test_shards_are_reached_in_the_way_that_their_index_was(tmp_path: Path) -> None:
    """Here through copies in a cache: what was read once is not asked for again."""
    write_shards(tmp_path / "d", [3])
    access = access_of(cache_dir=str(tmp_path / "cache"), cache_size="1GB")
    with serving(tmp_path / "d") as (address, handler):
        samples = Samples(open_index([f"{address}/good/s-000000.tar"], str(tmp_path / "i"), access=access))
        first = samples.members(0, 1)
        handler.asked.clear()
        assert samples.members(0, 1) == first
        assert handler.asked == []
