"""The record of samples that cannot be decoded: how many in which way, in which shards, and the first by name.

It belongs to the run, not to the process: its state goes into checkpoints, beside the number of samples seen, and
comes back from there. So no restart hides what was counted, and a sample that is seen again is not counted again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.files import replace_file
from pretrain.records import Replaced

log = logging.getLogger(__name__)

_LEAST_TO_JUDGE = 1000  # samples before the share of bad ones means anything
_NAMED = 10  # bad samples that the log names one by one
_EXAMPLES = 50  # that the report names


class BadSamples:
    """Counts samples as they come, and those among them that cannot be decoded.

    Args:
        fate: what becomes of such a sample, for the log.
        once: whether the same samples come again and again: a bad one counts the first time only.
    """

    def __init__(self, fate: str = "another one stands in", once: bool = False) -> None:
        self.fate = fate
        self.once = once
        self.seen = 0
        self.counts: Counter[tuple[str, str]] = Counter()  # by shard and kind
        self.examples: list[dict[str, Any]] = []
        self._known: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return self.counts.total()

    @property
    def shards(self) -> Counter[str]:
        return self._summed(0)

    @property
    def kinds(self) -> Counter[str]:
        return self._summed(1)

    def add(self, samples: int, bad: Iterable[Replaced]) -> None:
        """Counts a batch; the log names its bad samples, as long as they are few."""
        self.seen += samples
        for one in bad:
            if self.once and (one.shard, one.key) in self._known:
                continue
            self._known |= {(one.shard, one.key)} if self.once else set()
            self.counts[one.shard, one.kind] += 1
            if len(self) <= _NAMED:
                then = f"{self.fate}; further ones are only counted" if len(self) == _NAMED else self.fate
                log.warning(
                    "sample `%s` of `%s` cannot be decoded (%s: %s): %s", one.key, one.shard, one.kind, one.cause, then
                )
            if len(self.examples) < _EXAMPLES:
                row = {"g": one.g, "shard": one.shard, "key": one.key, "kind": one.kind, "cause": one.cause}
                self.examples.append(row)

    def too_many(self, fraction: float) -> bool:
        """Whether more than this share of the run's samples are bad."""
        return len(self) > fraction * max(self.seen, _LEAST_TO_JUDGE)

    def __str__(self) -> str:
        """14 of 1280 samples cannot be decoded (truncated 10, empty 4); the worst shard is `a.tar` with 9."""
        if not self:
            return f"all of {self.seen} samples could be decoded"
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common())
        worst, count = self.shards.most_common(1)[0]
        these = f"{len(self)} samples" if self.once else f"{len(self)} of {self.seen} samples"
        return f"{these} cannot be decoded ({kinds}); the worst shard is `{worst}` with {count}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain data, the same bad samples for the same samples seen."""
        counts = [[shard, kind, count] for (shard, kind), count in self.counts.items()]
        return {"seen": self.seen, "counts": counts, "examples": list(self.examples)}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen, self.examples = state["seen"], list(state["examples"])
        self.counts = Counter({(shard, kind): count for shard, kind, count in state["counts"]})

    @staticmethod
    def joined(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """What several ranks counted, as one state."""
        total = BadSamples()
        for state in states:
            total.seen += state["seen"]
            for shard, kind, count in state["counts"]:
                total.counts[shard, kind] += count
            total.examples += state["examples"]
        total.examples = sorted(total.examples, key=lambda one: one["g"])[:_EXAMPLES]
        return total.state()

    def rows(self) -> dict[str, Any]:
        """The same for a person to read, the worst first."""
        shards: dict[str, dict[str, int]] = {shard: {} for shard, _ in self.shards.most_common()}
        for (shard, kind), count in self.counts.most_common():
            shards[shard][kind] = count
        kinds = dict(self.kinds.most_common())
        seen = {} if self.once else {"samples": self.seen}
        return seen | {"bad": len(self), "kinds": kinds, "shards": shards, "examples": self.examples}

    def _summed(self, place: int) -> Counter[str]:
        total: Counter[str] = Counter()
        for names, count in self.counts.items():
            total[names[place]] += count
        return total


def write_report(folder: Path, rank: int = 0, **parts: BadSamples) -> None:
    """Writes `data_report.json`, of other ranks than 0 `data_report.rank1.json`: each has its own samples.

    What cannot be written, the disk being full, does not cost a run.
    """
    name = f"data_report.rank{rank}.json" if rank else "data_report.json"
    try:
        content = {part: bad.rows() for part, bad in parts.items()}
        replace_file(folder / name, json.dumps(content, indent=1).encode())
    except OSError as failure:
        log.error("no %s in %s: %s", name, folder, failure)
