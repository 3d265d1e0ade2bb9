"""What was called otherwise in earlier versions: keys, values and classes, each old name with the new one.

Runs, exports and recipes of version 0.1 are read through these tables. On a command line an old name is refused, with
the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A key, whole or from the right: `view.crop_ratio` is one of every view. What stands below it moves with it.
KEYS = {
    "callback": "callbacks",
    "nodes": "num_nodes",
    "batch_size_per_device": "max_micro_batch_size",
    "trainer.nodes": "trainer.num_nodes",
    "trainer.recompute": "trainer.activation_checkpointing",
    "trainer.gather": "trainer.param_dtype",
    "objective.norm_pix": "objective.norm_pix_loss",
    "objective.student_temperature": "objective.student_temp",
    "objective.teacher_temperature": "objective.teacher_temp",
    "objective.warmup_teacher_temperature": "objective.warmup_teacher_temp",
    "objective.warmup_teacher_temperature_epochs": "objective.warmup_teacher_temp_epochs",
    "objective.teacher_momentum": "objective.momentum_teacher",
    "objective.final_teacher_momentum": "objective.final_momentum_teacher",
    "objective.head.layers": "objective.head.nlayers",
    "view.crop_ratio": "view.crop_pct",
    "global_view.crop_ratio": "global_view.crop_pct",
    "local_view.crop_ratio": "local_view.crop_pct",
}
# The choice of a group, and the value of a key.
VALUES = {("trainer", "one_gpu"): "gpu"}
# The dotted path of a class, or of what it is in.
TARGETS = {
    "pretrain.callback.": "pretrain.callbacks.",
    "pretrain.data.order.": "pretrain.data.stream.order.",
}


def key(old: str) -> str:
    """The present name of a dotted key; a key that has kept its name is given back."""
    parts, new = old.split("."), ""
    for part in parts:
        new = f"{new}.{part}" if new else part
        whole = KEYS.get(new)
        # from the right: the shortest end that the table knows, but names of one part are those of the top alone
        ends = (new.split(".", number)[-1] for number in range(1, new.count(".")))
        new = whole or next((new.removesuffix(end) + KEYS[end] for end in ends if "." in end and end in KEYS), new)
    return new


def value(of: str, old: Any) -> Any:
    """The present name of the value of a key."""
    if isinstance(old, str):
        if of.rpartition(".")[2] == "_target_":
            return target(old)
        return VALUES.get((of, old), old)
    return old


def target(old: str) -> str:
    """The present path of a class."""
    start = next((start for start in TARGETS if old.startswith(start)), "")
    return TARGETS[start] + old.removeprefix(start) if start else old


def current(plain: Any, of: str = "") -> Any:
    """Nested plain data that an earlier version wrote, under the names of today.

    Args:
        plain: a configuration, or a part of one.
        of: the key under which that part stands.
    """
    if isinstance(plain, dict):
        named = {str(name): f"{of}.{name}" if of else str(name) for name in plain}
        if not str(plain.get("_target_", "pretrain.")).startswith("pretrain."):  # another's class has names of its own
            return {name: current(plain[name], full) for name, full in named.items()}
        return {key(full).rpartition(".")[2]: current(plain[name], full) for name, full in named.items()}
    if isinstance(plain, list):
        return [current(one, of) for one in plain]
    return value(of, plain)


def mistakes(words: Sequence[tuple[str, Any]]) -> dict[str, str]:
    """The old names among keys with their values: old key → a sentence with the new one."""
    found = {}
    for old, given in words:
        now, said = key(old), value(old, given)
        if (now, said) != (old, given):
            found[old] = f"{old}={given}: it is called {now}={said} now" if given else f"{old} is called {now} now"
    return found
