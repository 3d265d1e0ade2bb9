"""Columns stay, the field's names stand beside them, and wandb's names form groups."""

from __future__ import annotations

from pretrain.callbacks.metric_names import grouped, with_field_names

ROW = {"step": 7, "samples_seen": 56, "seconds": 1.5, "loss": 0.5, "lr": 1e-3, "val_loss": 0.6, "knn": 0.25}
ROW |= {"effective_rank": 9.0, "feature_std": 0.4, "data_wait": 0.1}
GROUPS = {"val_loss": "val", "knn": "val", "effective_rank": "health", "feature_std": "health", "data_wait": "speed"}


def test_the_fields_names_stand_beside_the_columns() -> None:
    assert with_field_names(ROW) == {**ROW, "knn_top1": 0.25, "rankme": 9.0}


def test_wandb_is_given_each_value_once_by_group() -> None:
    assert grouped(ROW, GROUPS) == {
        "progress/samples_seen": 56,
        "progress/seconds": 1.5,
        "train/loss": 0.5,
        "train/lr": 1e-3,
        "val/loss": 0.6,
        "val/knn_top1": 0.25,
        "health/rankme": 9.0,
        "health/feature_std": 0.4,
        "speed/data_wait": 0.1,
    }
