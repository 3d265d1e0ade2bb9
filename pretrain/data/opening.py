"""From what a user names as data to indexes: of one data set, or of several that are mixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pretrain.data.patterns import NamedPatterns as NamedPatterns
from pretrain.data.patterns import Patterns as Patterns
from pretrain.data.shard.index import Index, count_known, open_index
from pretrain.data.store import source
from pretrain.data.stream import mixture
from pretrain.data.training import TrainingShards, source_shares
from pretrain.records import Problem, SourceShare, UserError


def named(train: Patterns | NamedPatterns | None) -> NamedPatterns:
    """The patterns of each data set by name; a single one has the name ""."""
    if train is None:
        return {}
    return dict(train) if isinstance(train, Mapping) else {"": train}


def mixture_problems(train: object, sources: dict[str, float] | None) -> Iterator[Problem]:
    if isinstance(train, Mapping) and train:
        yield from mixture.problems(list(train), sources)
    elif sources is not None and train:
        names = ", ".join(f"{name}: …" for name in sources)
        yield "sources", f"has weights, but data.train names no data sets: write data.train={{{names}}}"
    elif sources is not None:
        yield from mixture.weight_problems(sources)


def open_training(
    train: Patterns | NamedPatterns | None,
    sources: Mapping[str, float] | None,
    index_dir: str | None = None,
    allow_pipe: bool = False,
    prefix: str = "data.",
    access: source.Access | None = None,
    skip: Patterns | None = None,
) -> TrainingShards:
    """The training shards that patterns stand for; the rest as for `open_shards`, `sources` as for `ShardData`.

    Raises:
        UserError: a data set has no shards, or they cannot be read (those of all data sets are named).
    """
    lines = [
        f"{prefix}{key}: {reason}" for key, reason in mixture_problems(train, None if not sources else dict(sources))
    ]
    if lines:
        raise UserError("\n".join(lines))
    indexes = {}
    for name, patterns in (named(train) or {"": []}).items():
        try:
            indexes[name] = open_shards(patterns, index_dir, allow_pipe, prefix, access, skip)
        except UserError as mistake:
            lines.append(f"{name}: {mistake}" if name else str(mistake))
    if lines:
        raise UserError("\n".join(lines))
    return TrainingShards(indexes, sources or {})


def open_shards(
    patterns: Patterns | None,
    index_dir: str | None = None,
    allow_pipe: bool = False,
    prefix: str = "data.",
    access: source.Access | None = None,
    skip: Patterns | None = None,
) -> Index:
    """The index of the shards that patterns stand for, less what skip lists leave out.

    `prefix` and `access` are as for `source.expand`.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    shards, mistakes = source.expand(patterns or [], allow_pipe, prefix, access)
    if mistakes or not shards:
        raise UserError("\n".join(mistakes) or "no shards are named")
    index = open_index(shards, index_dir, prefix, access, skip)
    if not any(shard.count for shard in index.shards):
        raise UserError(f"`{patterns}`: there is no image in any of the {len(shards)} shards")
    if not index.num_samples:
        raise UserError(f"{prefix}skip={skip}: it leaves out every sample of `{patterns}`")
    return index


def known_size(
    train: Patterns | NamedPatterns | None, index_dir: str | None = None, skip: Patterns | None = None
) -> int | None:
    """How many samples shards have, if an index of all of them is there; no shard is read to find out."""
    sizes = [_known_size(patterns, index_dir, skip) for patterns in named(train).values()]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def known_shares(
    train: Patterns | NamedPatterns | None,
    sources: Mapping[str, float] | None,
    index_dir: str | None = None,
    skip: Patterns | None = None,
) -> dict[str, SourceShare]:
    """What part of all samples each source of a mixture has, and how many samples it has where an index of it is
    there; empty without a mixture."""
    if not sources or len(sources) == 1:
        return {}
    return source_shares(
        mixture.places(sources),
        {name: _known_size(patterns, index_dir, skip) for name, patterns in named(train).items()},
    )


def _known_size(patterns: Patterns, index_dir: str | None, skip: Patterns | None) -> int | None:
    shards, mistakes = source.expand(patterns, allow_pipe=True)
    try:
        return None if mistakes or not shards else count_known(shards, index_dir, skip)
    except UserError:  # a skip list that cannot be read
        return None
