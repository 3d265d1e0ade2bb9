"""The shard doctor: checks shards, describes, repairs, rewrites and indexes them, and finds what is there twice.

    python scripts/shards.py action=verify 'data=shards/*.tar'

verify   every header, name, image, label, and the index: a line for each finding and exit code 1, or one line that all
         is well. out=FILE: the findings as json; skip=FILE: a skip list of the samples that cannot be decoded.
stats    how many, how large, which formats and classes. out=DIR: stats.json and stats.png.
repair   copies of the damaged shards with every sample that is whole, to out=DIR.
reshard  shards of samples_per_shard, of images whose short side is at most short_side, to out=DIR.
dedupe   a skip list, out=FILE, of copies among `data`, and of those of samples of `val`.
index    counts and digest; builds the index in index_dir, or anew beside the shards with beside=true.

A skip list is taken by a run (data.skip=FILE), and by stats, reshard and dedupe (skip=FILE).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.arguments import script
from pretrain.data import source
from pretrain.data.index import open_index
from pretrain.data.module import Patterns
from pretrain.data.skip import write_skip_list
from pretrain.doctor.finding import write_json
from pretrain.doctor.index import build_index
from pretrain.doctor.parallel import processors
from pretrain.doctor.repair import repair
from pretrain.doctor.reshard import Resharding, reshard
from pretrain.doctor.stats import stats
from pretrain.doctor.verify import verify
from pretrain.records import UserError


@dataclass(frozen=True)
class Arguments:
    action: Literal["verify", "stats", "repair", "reshard", "dedupe", "index"]
    data: Patterns
    out: str | None = None
    skip: Patterns | None = None
    index_dir: str | None = None
    allow_pipe: bool = False
    workers: int | None = None
    beside: bool = False
    samples_per_shard: int = 1000
    short_side: int | None = None
    quality: int = 90
    shuffle: int | None = None
    name: str = "train"
    bench: bool = True


def main(a: Arguments) -> None:
    urls, mistakes = source.expand(a.data, a.allow_pipe, "")
    if mistakes or not urls:
        raise UserError("\n".join(mistakes) or f"data={a.data}: no shards are named")
    workers = a.workers or processors()
    {"verify": _verify, "stats": _stats, "repair": _repair, "reshard": _reshard, "index": _index}[a.action](a, urls, workers)


def _verify(a: Arguments, urls: list[str], workers: int) -> None:
    report = verify(urls, workers)
    for finding in report.findings:
        print(finding.line())
    print(report.summary())
    if a.out is not None:
        write_json(Path(a.out), report.findings)
    if a.skip is not None:
        write_skip_list(Path(str(a.skip)), report.skipped)
        print(f"{len(report.skipped)} samples that cannot be decoded are listed in {a.skip}")
    if report.findings:
        sys.exit(1)


def _repair(a: Arguments, urls: list[str], workers: int) -> None:
    result = repair(urls, Path(str(a.out)), workers)
    for finding in result.lost:
        print(finding.line())
    print(result.summary())


def _stats(a: Arguments, urls: list[str], workers: int) -> None:
    found = stats(open_index(urls, a.index_dir, "", a.skip), workers)
    print("\n".join(found.lines()))
    if a.out is not None:
        found.write(Path(a.out))


def _reshard(a: Arguments, urls: list[str], workers: int) -> None:
    how = Resharding(a.samples_per_shard, a.short_side, a.quality, a.shuffle, a.name)
    index = open_index(urls, a.index_dir, "", a.skip)
    print("\n".join(reshard(index, Path(str(a.out)), how, workers, a.bench and a.short_side is not None).lines()))


def _index(a: Arguments, urls: list[str], workers: int) -> None:
    index = build_index(urls, a.index_dir, a.beside, workers)
    print(f"{index.num_samples} samples in {len(urls)} shards, digest {index.digest}")


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)
