"""Builds the index of shards anew, beside them or in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from pretrain.data.shard.index import Index, open_index, owns_index, write_index
from pretrain.data.shard.sidecar import Shard, scan
from pretrain.data.store import source
from pretrain.doctor.parallel import ordered
from pretrain.files import remove_leftovers
from pretrain.records import UserError


def build_index(urls: Sequence[str], index_dir: str | None, beside: bool, workers: int) -> Index:
    """The index, written.

    Args:
        urls: the shards, as `source.expand` gives them.
        index_dir: where it is kept if not beside the shards, as for `open_index`; there only what is missing or of
            another shard is built.
        beside: whether every shard is read again, and the index written beside it.
        workers: threads that read.

    Raises:
        UserError: shards are damaged, or their folder cannot be written.
    """
    if not beside:
        return open_index(urls, index_dir, prefix="")
    folders = {url: Path(url).absolute().parent for url in urls if source.is_local(url)}
    if len(folders) < len(urls):
        raise UserError("beside=true: only local shards can have their index beside them; leave it out for the others")
    for folder in sorted(set(folders.values())):
        if not os.access(folder, os.W_OK):
            raise UserError(f"beside=true: {folder} cannot be written; leave it out, or name index_dir")
        if not owns_index(folder):
            raise UserError(f"beside=true: index.json in {folder} is not one of ours and would be overwritten")
    for folder in set(folders.values()):
        remove_leftovers(folder)
    mistakes = []

    def attempt(url: str) -> Shard | None:
        try:
            path = Path(url).absolute()
            return scan(str(path), path.with_name(f"{path.name}.idx"), "")
        except UserError as mistake:
            mistakes.append(str(mistake))
            return None

    with ThreadPoolExecutor(workers) as pool:
        done = list(tqdm(ordered(pool, attempt, urls), total=len(urls), desc="indexing", unit="shard"))
    if mistakes:
        raise UserError("\n".join(sorted(mistakes)))
    shards = [shard for shard in done if shard is not None]
    for folder in sorted(set(folders.values())):
        write_index(folder, [shard for shard in shards if Path(shard.url).parent == folder])
    return Index(shards)
