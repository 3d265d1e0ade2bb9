"""The shard doctor: checks, describes, repairs, rewrites and indexes shards.

    pretrain shards action=verify 'data=shards/*.tar'

verify   every header, name, image and label, and the index beside the shards: a line for each
         finding and exit code 1, or one line that all is well. out=FILE: the findings as json;
         skip=FILE: a skip list of the samples that cannot be decoded.
stats    how many, how large, which formats and classes. out=DIR: stats.json and stats.png.
repair   copies of the damaged shards with every sample that is whole, to out=DIR.
reshard  shards of samples_per_shard=1000, images shrunk to a short_side=256 as JPEGs of
         quality=90, to out=DIR; the order is kept, or mixed by the seed shuffle=0; bench=false does
         not measure what it gains.
dedupe   a skip list, out=FILE, of samples that are there twice, or are in `val` too, and a picture
         of the least certain pairs beside it; distance=0.4 says how alike images are that look the
         same, 0 takes exact copies alone.
index    counts and digest; builds the index in index_dir, or anew beside the shards with
         beside=true.

A run takes a skip list (data.skip=FILE), and so do stats, reshard and dedupe (skip=FILE).
Nothing that exists is written over: `out`, and `skip` of verify, are new files, those of lists
called NAME.json.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretrain.config.arguments import word
from pretrain.config.problem import UserError
from pretrain.data.patterns import Patterns
from pretrain.files import replace_file

if TYPE_CHECKING:
    from pretrain.data.shard.index import Index

_EVERY = {"action", "data", "allow_pipe", "workers"}
_WORDS = {
    "verify": {"out", "skip"},
    "stats": {"out", "skip", "index_dir"},
    "repair": {"out"},
    "reshard": {"out", "skip", "index_dir", "samples_per_shard", "short_side", "quality", "shuffle", "name", "bench"},
    "dedupe": {"out", "skip", "index_dir", "val", "distance"},
    "index": {"index_dir", "beside"},
}


@dataclass(frozen=True)
class Arguments:
    action: Literal["verify", "stats", "repair", "reshard", "dedupe", "index"] = word(
        "What is done, as listed above.", example="verify"
    )
    data: Patterns = word("The shards: a folder, a pattern, or a list of them.", example="shards/*.tar")
    out: str | None = word("Where the result goes: a new file or folder.", None, example="skip.json")
    skip: Patterns | None = word(
        "Lists of samples to leave out; for verify, the new list of those that cannot be decoded.",
        None,
        example="skip.json",
    )
    index_dir: str | None = word(
        "A folder for the index of shards that have none beside them; by default a cache of the user's.",
        None,
        example="index",
    )
    allow_pipe: bool = word("Whether `pipe:` patterns may start programs.", False, example="true")
    workers: int | None = word("Threads; by default one a processor.", None, example="8")
    beside: bool = word("For index: builds it anew, beside the shards.", False, example="true")
    samples_per_shard: int = word("For reshard: how many samples a shard holds.", 1000, example="5000")
    short_side: int | None = word("For reshard: the shorter side of the images, in pixels.", None, example="256")
    quality: int = word("For reshard: of the JPEGs that are written.", 90, example="95")
    shuffle: int | None = word("For reshard: the seed of a new order; without it the order is kept.", None, example="0")
    name: str = word(
        "For reshard: what the set is called; its shards are NAME-000000.tar and so on.", "train", example="val"
    )
    bench: bool = word("For reshard: whether to measure what smaller images gain.", True, example="false")
    val: Patterns | None = word(
        "For dedupe: shards whose samples `data` must not have.", None, example="shards/val-*.tar"
    )
    distance: float = word("For dedupe: how alike images are that count as the same, from 0 to 1.", 0.4, example="0")


def main(a: Arguments) -> None:
    from pretrain.data.store import source
    from pretrain.doctor.parallel import processors

    urls, lines = source.expand(a.data, a.allow_pipe, "")
    lines = [*mistakes(a), *(lines or ([] if urls else [f"data={a.data}: there is no shard in it"]))]
    if lines:
        raise UserError("\n".join(lines))
    do = {"verify": _verify, "stats": _stats, "repair": _repair, "reshard": _reshard, "dedupe": _dedupe}
    (_index if a.action == "index" else do[a.action])(a, urls, a.workers or processors())


def mistakes(a: Arguments) -> Iterator[str]:
    """What is wrong with the words of an action, before anything is read."""
    from pretrain.data.shard import skip

    for field in fields(a):
        if field.name not in _EVERY | _WORDS[a.action] and getattr(a, field.name) != field.default:
            yield f"{field.name}={getattr(a, field.name)}: action={a.action} does not take it"
    if a.out is None and a.action in ("repair", "reshard", "dedupe"):
        yield f"out=… is missing: action={a.action} writes a {'file' if a.action == 'dedupe' else 'folder'}"
    limits = {"workers": (1, None), "samples_per_shard": (1, None), "short_side": (1, None)}
    for name, (least, most) in (limits | {"quality": (1, 100), "distance": (0, 1)}).items():
        value = getattr(a, name)
        if value is not None and (value < least or (most is not None and value > most)):
            yield f"{name}={value}: must be at least {least}" + ("" if most is None else f" and at most {most}")
    if not re.fullmatch(r"[\w-]+", a.name):
        yield f"name={a.name}: must be letters, digits, - and _, for it begins the shards' names"
    if a.action == "verify" and a.skip is not None and not isinstance(a.skip, str):
        yield f"skip={a.skip}: action=verify writes one list"
    elif a.action in ("stats", "reshard", "dedupe"):
        yield from skip.mistakes(a.skip)
    yield from _mistaken_targets(a)


def _mistaken_targets(a: Arguments) -> Iterator[str]:
    """Files to be written that are there already, or that cannot be."""
    lists = {"verify": ("out", "skip"), "dedupe": ("out",)}.get(a.action, ())
    paths = {name: Path(path) for name in lists if isinstance(path := getattr(a, name), str)}
    for name, path in paths.items():
        if path.suffix != ".json" or not path.absolute().parent.is_dir():
            yield f"{name}={path}: must be a file called NAME.json, in a folder that is there"
    if len({os.path.realpath(path) for path in paths.values()}) < len(paths):
        yield f"out={a.out}, skip={a.skip}: are the same file; choose another name for one of them"
    files = list(paths.items())
    if a.action == "dedupe":
        files += [("out", path.with_suffix(".png")) for path in paths.values()]
    elif a.out is not None and not paths:
        folder = Path(a.out)
        blocking = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not blocking.is_dir():
            yield f"out={a.out}: `{blocking}` is a file; choose another folder"
        names = {"stats": ("stats.json", "stats.png"), "reshard": ("reshard.json",)}.get(a.action, ())
        files += [("out", folder / name) for name in names]
    for name, path in files:
        if os.path.lexists(path):
            yield f"{name}={getattr(a, name)}: `{path}` exists, and nothing is written over: choose another name"


def _verify(a: Arguments, urls: list[str], workers: int) -> None:
    from pretrain.data.shard.skip import write_skip_list
    from pretrain.doctor.finding import write_json
    from pretrain.doctor.verify import verify

    report = verify(urls, workers)
    for finding in report.findings:
        print(finding.line())
    print(report.summary())
    if a.out is not None:
        write_json(Path(a.out), report.findings)
    if isinstance(a.skip, str):
        write_skip_list(Path(a.skip), report.skipped)
        print(f"{len(report.skipped)} samples that cannot be decoded are listed in {a.skip}")
    if report.findings:
        sys.exit(1)


def _stats(a: Arguments, urls: list[str], workers: int) -> None:
    from pretrain.doctor.stats import stats

    found = stats(_opened(a, urls), workers)
    print("\n".join(found.lines()))
    if a.out is not None:
        found.write(Path(a.out))


def _repair(a: Arguments, urls: list[str], workers: int) -> None:
    from pretrain.doctor.repair import repair

    result = repair(urls, Path(str(a.out)), workers)
    for finding in result.lost:
        print(finding.line())
    print(result.summary())
    if result.empty or any(one.kind == "read" for one in result.lost):
        sys.exit(1)


def _reshard(a: Arguments, urls: list[str], workers: int) -> None:
    from pretrain.doctor.reshard import Resharding, reshard

    how = Resharding(a.samples_per_shard, a.short_side, a.quality, a.shuffle, a.name)
    outcome = reshard(_opened(a, urls), Path(str(a.out)), how, workers, a.bench and a.short_side is not None)
    print("\n".join(outcome.lines()))


def _dedupe(a: Arguments, urls: list[str], workers: int) -> None:
    from pretrain.data.opening import open_shards
    from pretrain.data.shard.skip import write_skip_list
    from pretrain.doctor.dedupe import dedupe, skip_rows
    from pretrain.doctor.sample import Samples
    from pretrain.doctor.sheet import sheet

    train = _opened(a, urls)
    val = None if a.val is None else open_shards(a.val, a.index_dir, a.allow_pipe, prefix="")
    found = dedupe(train, val, workers, a.distance)
    out = Path(str(a.out))
    write_skip_list(out, skip_rows(found, train, val))
    print("\n".join(found.lines()))
    picture = sheet(found.copies, {1: Samples(train)} | ({} if val is None else {0: Samples(val)}))
    if picture is not None:
        replace_file(out.with_suffix(".png"), picture)
        print(f"the least certain pairs: {out.with_suffix('.png')}")


def _index(a: Arguments, urls: list[str], workers: int) -> None:
    from pretrain.doctor.index import build_index

    index = build_index(urls, a.index_dir, a.beside, workers)
    print(f"{index.num_samples} samples in {len(urls)} shards, digest {index.digest}")


def _opened(a: Arguments, urls: list[str]) -> Index:
    from pretrain.data.shard.index import open_index

    return open_index(urls, a.index_dir, "", skip=a.skip)
