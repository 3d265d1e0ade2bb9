"""Checks shards: their structure, every image and label, and the index beside them.

A damaged shard stops neither the check of the others nor of what lies behind its damage. Each shard is read by one
thread, and its images are decoded by all.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from pretrain.config import secret
from pretrain.data.shard.listing import rows_of
from pretrain.data.shard.sample import EXTENSIONS
from pretrain.data.shard.sidecar import Sidecar
from pretrain.data.shard.skip import Skipped
from pretrain.data.store import source
from pretrain.doctor.finding import Finding
from pretrain.doctor.image import LABELS, image_trouble, label_trouble
from pretrain.doctor.parallel import ordered
from pretrain.doctor.shard import Content, Reading, is_unsafe, local_copy, read_member, read_shard
from pretrain.records import UserError


@dataclass
class Report:
    """What a check found. `skipped` are the samples that cannot be decoded, of shards that are whole otherwise."""

    shards: int = 0
    samples: int = 0
    size: int = 0
    findings: list[Finding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def summary(self) -> str:
        what = f"{self.samples} samples in {self.shards} shards, {self.size / 1e6:.1f} MB"
        if not self.findings:
            return f"{what}: all is well"
        kinds = Counter(finding.kind for finding in self.findings)
        shards = len({finding.shard for finding in self.findings})
        return f"{what}: {len(self.findings)} findings in {shards} shards ({_listing(kinds)})"


def _listing(kinds: Counter[Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def verify(urls: Sequence[str], workers: int) -> Report:
    """Checks shards, with a progress bar.

    Args:
        urls: the shards, as `source.expand` gives them.
        workers: threads that decode.
    """
    sizes = {url: os.path.getsize(url) if os.path.isfile(url) else 0 for url in urls}
    report = Report()
    with (
        tqdm(total=sum(sizes.values()), desc="verifying", unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ThreadPoolExecutor(min(workers, len(urls))) as readers,
        ThreadPoolExecutor(workers) as pool,
    ):
        for url, one in zip(urls, ordered(readers, partial(_verify_shard, pool, bar), urls, 2 * workers), strict=True):
            report.shards += 1
            report.samples += one.samples
            report.size += one.size
            report.findings += one.findings
            report.skipped += one.skipped
            bar.set_postfix_str(f"{len(report.findings)} findings, {Path(url).name}", refresh=False)
    report.findings += _missing(urls)
    return report


def _verify_shard(pool: Executor, bar: Any, url: str) -> Report:
    try:
        with local_copy(url) as file:
            reading = read_shard(file)
            findings = [
                Finding(url, "tar", damage.cause, byte=damage.byte)
                for damage in sorted(reading.damages, key=lambda damage: damage.byte)
            ]
            findings += _unsafe_names(url, reading)
            done = 0
            for content, found in zip(
                reading.contents, ordered(pool, partial(check_content, file, url), reading.contents), strict=True
            ):
                findings += found
                reached = max(member.offset + member.size for _, member in content.members)
                bar.update(max(0, reached - done))
                done = max(done, reached)
            bar.update(reading.size - done)
    except OSError as failure:
        return Report(findings=[Finding(url, "read", str(failure))])
    findings += index_findings(url, reading)
    return Report(0, reading.count, reading.size, findings, _to_skip(url, reading, findings))


def check_content(file: IO[bytes], url: str, content: Content) -> list[Finding]:
    """What is wrong with one sample."""
    place: dict[str, Any] = {"key": content.key, "byte": content.members[0][1].offset, "member": content.number}
    if content.trouble:
        return [Finding(url, "sample", content.trouble, **place)]
    image = content.image()
    if image is None:
        labelled = any(content.member(extension) is not None for extension in LABELS)
        return [Finding(url, "sample", "has a label, but no image", **place)] if labelled else []
    findings = []
    for member in content.images():
        if found := image_trouble(read_member(file, member)):
            of_others = "" if member == image[1] else f"`{member.name}` "
            findings.append(Finding(url, found[0], f"{of_others}{found[1]}", **place))
    for extension, member in content.members:
        if trouble := label_trouble(extension, read_member(file, member) if extension in LABELS else b""):
            findings.append(Finding(url, "label", trouble, **place))
    return findings


def _unsafe_names(url: str, reading: Reading) -> Iterator[Finding]:
    members = [member for content in reading.contents for _, member in content.members]
    for member in members + reading.loose:
        if is_unsafe(member.name):
            yield Finding(
                url,
                "name",
                f"`{member.name}` would leave its folder if a careless program unpacked it; nothing here writes it",
                byte=member.offset,
            )


def _to_skip(url: str, reading: Reading, findings: Sequence[Finding]) -> list[Skipped]:
    """Samples of a shard that the index accepts which cannot be decoded."""
    if not reading.is_whole:
        return []
    name = secret.address(url).rstrip("/").rpartition("/")[2]
    return [
        Skipped(reading.sha256, name, finding.member, finding.key or "", finding.cause)
        for finding in findings
        if finding.kind == "image" and finding.member is not None
    ]


# ── the index beside the shards ──────────────────────────────────────────────────────────────────────────────────────


def index_findings(url: str, reading: Reading) -> list[Finding]:
    """What the index beside a local shard says that is not so. That there is none is well."""
    if not source.is_local(url):
        return []
    folder, name = Path(url).absolute().parent, Path(url).name
    row = _listed(folder)[0].get(name)
    if row is None:
        return []
    causes, mend = [], "pretrain shards action=index beside=true mends it"
    if row["sha256"] != reading.sha256:
        causes.append(f"index.json is of other bytes: sha256 {row['sha256'][:16]}… there, {reading.sha256[:16]}… here")
        mend = "restore the shard; index it anew only if you changed it yourself"
    elif row["bytes"] != reading.size:
        causes.append(f"index.json says {row['bytes']} bytes, it has {reading.size}")
    else:
        if row["modified"] != int(os.stat(url).st_mtime):
            causes.append("index.json is stale, so it is not used: the shard's time is another (copied without times?)")
        if reading.is_whole and row["count"] != reading.count:
            causes.append(f"index.json says {row['count']} samples, it has {reading.count}")
        if reading.is_whole:
            causes += _sidecar_causes(folder / row["sidecar"], reading)
    return [Finding(url, "index", f"{cause}; {mend}") for cause in causes]


def _listed(folder: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(the rows of a folder's index.json by their names, what is wrong with the file)."""
    rows, ours = rows_of(folder)
    return rows, [] if ours else ["is none of ours, or damaged, so it is not used"]


def _sidecar_causes(path: Path, reading: Reading) -> list[str]:
    """What is wrong with a sidecar that index.json names."""
    if not path.is_file():
        return [f"index.json names {path.name}, which is not there"]
    try:
        sidecar = Sidecar(path)
        found = [
            (sidecar.key(number), [tuple(part) for part in sidecar.parts(number)])
            for number in range(sidecar.header["count"])
        ]
        sha256 = sidecar.header["sha256"]
    except (UserError, ValueError, KeyError, IndexError, TypeError, RecursionError, OSError, struct.error) as failure:
        return [f"{path.name} cannot be read: {failure}"]
    if sha256 != reading.sha256:
        return [f"{path.name} is of other bytes"]
    samples = [
        (
            content.key.encode("utf-8", errors="replace").decode("utf-8", errors="replace"),
            [(EXTENSIONS[extension], start, stop) for extension, start, stop in content.recorded],
        )
        for content in reading.contents
        if content.number is not None
    ]
    if len(found) != len(samples):
        return [f"{path.name} says {len(found)} samples, it has {len(samples)}"]
    wrong = next((number for number, (a, b) in enumerate(zip(found, samples, strict=True)) if a != b), None)
    return [] if wrong is None else [f"{path.name} is wrong about sample {wrong}, `{samples[wrong][0]}`"]


def _missing(urls: Sequence[str]) -> Iterator[Finding]:
    """Shards that an index.json beside these lists, and that are gone; an index.json that is none."""
    for folder in sorted({Path(url).absolute().parent for url in urls if source.is_local(url)}):
        rows, causes = _listed(folder)
        for name in sorted(rows):
            if not (folder / name).is_file():
                yield Finding(str(folder / name), "index", "index.json lists it, but it is not there")
        for cause in causes:
            yield Finding(str(folder / "index.json"), "index", cause)
