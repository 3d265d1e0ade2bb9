"""What a metric is called: as a column of the run's files, and on wandb, where names form groups."""

from __future__ import annotations

from collections.abc import Mapping

from pretrain.callbacks.journal import Row

# The field's name of a column, which stands beside it.
FIELD = {"knn": "knn_top1", "effective_rank": "rankme"}
_COUNTERS = ("samples_seen", "seconds")


def with_field_names(row: Row) -> dict[str, float | int | None]:
    """The row, and beside each column that the field knows under another name the same value under that name."""
    return {**row, **{FIELD[name]: value for name, value in row.items() if name in FIELD}}


def grouped(row: Row, groups: Mapping[str, str]) -> dict[str, float | int | None]:
    """The row under names such as `train/loss`, each value once, under the field's name where there is one.

    Args:
        row: by the names of its columns.
        groups: of columns; those that are left out belong to `train`.
    """
    named = {}
    for name, value in row.items():
        if name == "step":  # wandb's own axis
            continue
        group = "progress" if name in _COUNTERS else groups.get(name, "train")
        named[f"{group}/{FIELD.get(name, name.removeprefix(f'{group}_'))}"] = value
    return named
