"""Old names: refused on a command line with the new one, and read in what earlier versions wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pretrain.cli import words
from pretrain.config import renamed
from pretrain.config.check import mistakes
from pretrain.config.overrides import composed, understood
from pretrain.config.signature import completed
from pretrain.trainer.run_folder import _changes, differences

RECIPES = {name: composed([f"+experiment={name}", "trainer=cpu"]) for name in ("mae_digits", "dino_vits16")}


def exists(key: str) -> bool:
    """In one of the recipes; a key that several places have (`view.crop_pct`) as the end of one."""
    return any(
        OmegaConf.select(cfg, f"{start}{key}") is not None for cfg in RECIPES.values() for start in ("", "objective.")
    )


@pytest.mark.parametrize(("old", "new"), renamed.KEYS.items())
def test_the_new_name_is_there_and_the_old_one_is_not(old: str, new: str) -> None:
    assert exists(new) or new in ("num_nodes", "trainer.num_nodes")  # whose value is null
    assert not exists(old)
    assert renamed.key(old) == new
    assert renamed.key(new) == new


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("callback.log.every_steps=5", "callbacks.log.every_steps=5"),
        ("callback=default", "callbacks=default"),
        ("nodes=2", "num_nodes=2"),
        ("batch_size_per_device=8", "max_micro_batch_size=8"),
        ("trainer.gather=float32", "trainer.param_dtype=float32"),
        ("objective.norm_pix=false", "objective.norm_pix_loss=false"),
        ("objective.view.crop_ratio=1.0", "objective.view.crop_pct=1.0"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one_and_its_value(old: str, new: str) -> None:
    lines = [line for line in mistakes(["+experiment=mae_digits", "trainer=cpu", old]) if not line.startswith("data.")]
    assert lines == [f"{old}: it is called {new} now"]


def test_an_old_choice_of_a_group_is_refused_with_the_new_one() -> None:
    lines = mistakes(["+experiment=mae_digits", "trainer=one_gpu"])
    assert "trainer=one_gpu: it is called trainer=gpu now" in lines


@pytest.mark.parametrize(
    ("trainer", "keys", "expected"),
    [
        (
            "trainer: cpu",
            "callback: {log: {every_steps: 5}}",
            "callback: there is no such group; it is called callbacks now",
        ),
        ("trainer: cpu", "nodes: 1", "nodes=1: there is no such key; it is called num_nodes now"),
        (
            "trainer: cpu",
            "objective: {norm_pix: false}",
            "objective.norm_pix=False: there is no such key; it is called objective.norm_pix_loss now",
        ),
        ("trainer: one_gpu", "", "Could not find 'trainer/one_gpu'; trainer=one_gpu: it is called trainer=gpu now"),
        ("callback: default", "", "callback is called callbacks now"),
    ],
)
def test_a_recipe_with_old_names_is_told_the_new_ones(tmp_path: Path, trainer: str, keys: str, expected: str) -> None:
    recipe = tmp_path / "experiment" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text(f"# @package _global_\ndefaults:\n  - override /{trainer}\n  - _self_\n{keys}\n")
    lines = mistakes([f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine"])
    assert any(expected in line for line in lines), lines


def test_what_was_written_is_read_under_the_names_of_today() -> None:
    written = {
        "trainer": {"nodes": None, "recompute": True},
        "objective": {
            "_target_": "pretrain.objective.dino.DINO",
            "head": {"layers": 2},
            "global_view": {"crop_ratio": 1},
        },
        "data": {"shuffle": {"_target_": "pretrain.data.order.Shuffle"}, "nodes": 3},
        "callback": {"log": {"_target_": "pretrain.callback.log.Log"}, "mine": {"_target_": "mine.callback.X"}},
    }
    assert renamed.current(written) == {
        "trainer": {"num_nodes": None, "activation_checkpointing": True},
        "objective": {
            "_target_": "pretrain.objective.dino.DINO",
            "head": {"nlayers": 2},
            "global_view": {"crop_pct": 1},
        },
        "data": {"shuffle": {"_target_": "pretrain.data.stream.order.Shuffle"}, "nodes": 3},
        "callbacks": {"log": {"_target_": "pretrain.callbacks.log.Log"}, "mine": {"_target_": "mine.callback.X"}},
    }
    assert renamed.current(renamed.current(written)) == renamed.current(written)


def test_a_key_that_one_side_alone_has_counts_as_its_default() -> None:
    target = {"_target_": "pretrain.encoder.vit.ViT", "depth": 3}
    silent, plain, other = (
        {"encoder": target},
        {"encoder": target | {"drop_path": 0.0}},
        {"encoder": target | {"drop_path": 0.1}},
    )
    assert differences(completed(silent), completed(plain)) == []
    assert differences(completed(plain), completed(silent)) == []
    assert differences(completed(silent), completed(other)) == ["encoder.drop_path: 0.0 there, 0.1 here"]


def test_a_default_that_is_a_tuple_is_no_difference_from_itself() -> None:
    silent = {"view": {"_target_": "pretrain.view.spec.ViewSpec", "size": 32}}
    spelt = {"view": silent["view"] | {"ratio": [3 / 4, 4 / 3]}}
    assert _changes(silent, silent) == _changes(silent, spelt) == _changes(spelt, silent) == []


def test_an_argument_of_another_packages_class_keeps_its_name() -> None:
    view = {"_target_": "pretrain.view.spec.ViewSpec", "crop_ratio": 1.0}
    own = {"objective": {"_target_": "mine.Own", "teacher_momentum": 0.5, "view": view}}
    read = renamed.current(own)["objective"]
    assert read["teacher_momentum"] == 0.5
    assert read["view"]["crop_pct"] == 1.0


def test_another_packages_argument_of_an_old_name_is_left_to_the_check_of_its_node() -> None:
    given = ["+experiment=mae_digits", "+objective.teacher_momentum=0.5"]
    assert understood(given) == (given, [])
    lines = [line for line in mistakes(given) if "teacher_momentum" in line]
    assert lines == [
        "objective.teacher_momentum=0.5: there is no such key; it is called objective.momentum_teacher now"
    ]
    assert understood(["+callback.x=1"])[1] == ["callback.x=1: it is called callbacks.x=1 now"]


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["-c", "job", "--resolve"]])
def test_an_old_name_is_refused_where_the_configuration_is_shown(flags: list[str]) -> None:
    assert words.mistakes(["+experiment=mae_digits", "nodes=2", *flags]) == ["nodes=2: it is called num_nodes=2 now"]
    assert words.mistakes(["+experiment=mae_digits", "~objective.pixel_order", *flags]) == []
