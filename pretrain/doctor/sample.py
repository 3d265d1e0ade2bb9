"""Samples of indexed shards with all their members, those included that the index does not record.

The index knows where a sample's image and label are. What else it has stands between them and its neighbours', so the
headers there are read again.
"""

from __future__ import annotations

import io

from pretrain.data.shard.index import Index
from pretrain.data.shard.sample import IMAGES, neighbours
from pretrain.data.shard.sidecar import Part
from pretrain.data.shard.tar import DamagedTarError, Member, members
from pretrain.data.store.source import Reader
from pretrain.records import UserError

_BLOCK = 512


def refuse_none(index: Index) -> None:
    """Refuses an index without any sample.

    Raises:
        UserError: it has none.
    """
    if not index.num_samples:
        raise UserError(f"data: no image in its {len(index.shards)} shards (or a skip list leaves all out)")


class Samples:
    """Reads samples of an index, from any thread."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.reader = Reader(index.access)
        self._whole = Index(index.shards)  # with what a skip list leaves out

    def places(self) -> list[tuple[int, int]]:
        """(shard, member) of all, in their order."""
        return [(shard, member) for shard, count in enumerate(self.index.counts) for member in range(count)]

    def read(self, shard: int, part: Part) -> bytes:
        """The bytes of a recorded member."""
        where = self.index.shards[shard]
        return self.reader.read(where.url, part.start, part.stop, where.size)

    def image(self, shard: int, member: int) -> Part:
        """Where a sample's image is."""
        parts = {part.extension: part for part in self.index.parts(shard, member)}
        return next(parts[extension] for extension in IMAGES if extension in parts)

    def members(self, shard: int, member: int) -> list[tuple[str, bytes, bool]]:
        """All members of a sample: extension, bytes, and whether it is the image."""
        start, stop = self._span(shard, self.index.number(shard, member))
        where = self.index.shards[shard]
        data = self.reader.read(where.url, start, stop, where.size)
        image = self.image(shard, member).start - start
        found: list[Member] = []
        try:
            for one in members(io.BytesIO(data).read):
                found.append(one)  # noqa: PERF402
        except DamagedTarError:
            pass  # it ends in the midst of the archive
        parts = next(parts for _, parts in neighbours(found) if any(one.offset == image for _, one in parts))
        return [
            (extension, data[one.offset : one.offset + one.size], one.offset == image)
            for extension, one in parts
            if one.offset < len(data)
        ]

    def _span(self, shard: int, number: int) -> tuple[int, int]:
        """The bytes from the end of the sample before to the first of the one behind, both as far as recorded."""
        where = self.index.shards[shard]
        start, stop = 0, where.size
        if number:
            end = max(part.stop for part in self._whole.parts(shard, number - 1))
            start = -(-end // _BLOCK) * _BLOCK
        if number + 1 < where.count:
            stop = min(part.start for part in self._whole.parts(shard, number + 1))
        return start, stop
