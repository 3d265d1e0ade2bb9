"""The words by which version 0.1 started its runs, as this version understands them."""

from __future__ import annotations

from collections.abc import Sequence

Names = Sequence[tuple[str, str]]  # (what a word began with, what it begins with now)

RENAMED: Names = [
    ("protocol=closed", "solver=logreg"),
    ("batch_size_per_device=", "max_micro_batch_size="),
    ("nodes=", "num_nodes="),
    ("callback.", "callbacks."),
    ("trainer=one_gpu", "trainer=gpu"),
    ("trainer.recompute=", "trainer.activation_checkpointing="),
    ("trainer.gather=", "trainer.param_dtype="),
    ("objective.norm_pix=", "objective.norm_pix_loss="),
    ("objective.teacher_momentum=", "objective.momentum_teacher="),
    ("objective.final_teacher_momentum=", "objective.final_momentum_teacher="),
    ("objective.teacher_temperature=", "objective.teacher_temp="),
    ("objective.head.layers=", "objective.head.nlayers="),
    ("objective.view.crop_ratio=", "objective.view.crop_pct="),
    ("objective.global_view.crop_ratio=", "objective.global_view.crop_pct="),
]


def renamed(words: Sequence[str]) -> list[str]:
    """Words of version 0.1 as this version understands them."""
    return translated(words, RENAMED)


def translated(words: Sequence[str], names: Names) -> list[str]:
    """Words with other beginnings."""
    return [_translated(word, names) for word in words]


def _translated(word: str, names: Names) -> str:
    for old, new in names:
        if word.startswith(old):
            return new + word.removeprefix(old)
    return word
