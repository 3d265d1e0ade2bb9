"""Every key of a configuration has a meaning, and `pretrain explain` tells it with its value, type and readers."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pretrain.cli.explain import run
from pretrain.config.comments import read
from pretrain.config.declared import declared
from pretrain.config.explain import Configuration, configuration, explained, meaning, type_of
from pretrain.config.meaning import HYDRAS, Sources, groups, options
from pretrain.config.mentions import followers, modules
from pretrain.config.overrides import folder
from pretrain.config.problem import UserError
from pretrain.config.signature import describe, hints_of, locate

OPTIONS = [(group, name) for group, names in groups().items() if group != "experiment" for name in names]
RECIPES = groups()["experiment"]
WORDS = ["", *(f"{group}={option}" for group, option in OPTIONS), *(f"+experiment={name}" for name in RECIPES)]


@cache
def shared(word: str) -> Configuration:
    """The configuration of one word, composed once for all tests."""
    return configuration([word] if word else [])


def by_files(recipe: str, group: str = "", option: str = "") -> Configuration:
    """The keys that a recipe with another option of a group has, read from the files: to compose all takes a minute."""
    chosen = shared(f"+experiment={recipe}" if recipe else "").sources
    sources = Sources({**chosen.choices, group: option} if group else chosen.choices, recipe, chosen.folders)
    raw = {key: value for key, value in read(folder() / "pretrain.yaml").values.items() if key[:5] != "hydra"}
    for name, one in sources.choices.items():
        files = [read(path) for path in reversed(sources.chain(name, one))]
        raw |= {name: {}} | {f"{name}.{key}": value for file in files for key, value in file.values.items()}
    for path in reversed(sources.chain("experiment", recipe) if recipe else []):
        for key, value in read(path).values.items():
            raw = {old: one for old, one in raw.items() if isinstance(value, dict) or not old.startswith(f"{key}.")}
            raw[key] = value
    return Configuration(sources, raw, raw, frozenset())


def unexplained(one: Configuration) -> list[str]:
    return [key for key in one.raw if len(meaning(one, key).split()) < 3]


@pytest.mark.parametrize("word", WORDS)
def test_every_key_has_a_meaning(word: str) -> None:
    one = shared(word)
    assert unexplained(one) == []
    recipe = word.removeprefix("+experiment=") if word.startswith("+") else ""
    chosen = word.partition("=")[::2] if word and not recipe else ("", "")
    assert one.raw.keys() == by_files(recipe, *chosen).raw.keys()
    assert len(one.raw) > 100


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_a_recipe_with_other_options_has_a_meaning(recipe: str) -> None:
    for group, option in OPTIONS:
        assert unexplained(by_files(recipe, group, option)) == [], (group, option)


def test_a_key_that_a_recipe_sets_for_another_option_says_so() -> None:
    text = plain(explained("objective.head.prototypes", ["+experiment=dino_digits", "objective=mae"]))
    assert "objective=mae has no such key, and the check refuses it. With objective=dino it is number of pro" in text


@pytest.mark.parametrize("word", WORDS)
def test_every_value_has_a_type(word: str) -> None:
    one = shared(word)
    values = [key for key, value in one.raw.items() if not isinstance(value, dict)]
    assert [key for key in values if not type_of(one, key)] == []


def test_every_setting_has_a_reader() -> None:
    one = shared("")
    settings = [key for key, value in one.raw.items() if "." not in key and not isinstance(value, dict)]
    assert [key for key in settings if not modules(key) and not followers(key, one.raw)] == []


def test_no_class_is_explained_twice() -> None:
    """A second node of the same class takes the meanings of the first: they would come to differ."""
    found: dict[tuple[str, str, str], Path] = {}
    for path, file in options().items():
        for key, comment in file.comments.items():
            node, dot, argument = key.rpartition(".")
            target = file.values.get(f"{node}{dot}_target_")
            if target and argument not in HYDRAS:
                assert found.setdefault((target, argument, comment), path) == path


def test_types_are_those_of_the_constructors() -> None:
    """They are read from sources that are not imported; here they are compared with what Python makes of them."""
    named = {(node, key.rpartition(".")[2]) for node, key in _arguments()}
    assert len(named) > 100
    for target, argument in sorted(named):
        found, real = declared(target), locate(target)[0]
        assert found is not None, target
        assert real is not None, target
        assert describe(found.hints[argument]) == describe(hints_of(real)[argument]), (target, argument)


def _arguments() -> list[tuple[str, str]]:
    return [
        (file.values[f"{key.rpartition('.')[0]}{'.' if '.' in key else ''}_target_"], key)
        for file in options().values()
        for key in file.values
        if key.rpartition(".")[2] not in HYDRAS
        and f"{key.rpartition('.')[0]}{'.' if '.' in key else ''}_target_" in file.values
    ]


def plain(text: str) -> str:
    """Without columns and ends of lines."""
    return " ".join(text.split())


def test_a_key_in_full() -> None:
    expected = """\
encoder.drop_path

  Probability to leave out a branch of the last block; it grows evenly from 0 at the first. 0:
  off.

  value       0.1, from conf/experiment/dino_vits16.yaml
  default     0.0, from conf/encoder/vit_base.yaml
  type        a number
  read by     pretrain.encoder.vit.ViT: A plain vision transformer with a class token.
  in recipes  0.1: dino_hiera_base, dino_vitb16, dino_vits16, dino_vits8
              0.2: mae_hiera_base, mae_hiera_base_plus, mae_hiera_large
              0.3: mae_hiera_huge
  see         docs/configuration.md, Encoders"""
    assert explained("encoder.drop_path", ["+experiment=dino_vits16"]) == expected


def test_a_setting_in_full() -> None:
    expected = """\
num_nodes

  Number of machines; null is as many as Slurm or torchrun started processes on, or else 1.

  value        2, as typed
  default      null, from conf/pretrain.yaml
  followed by  trainer.num_nodes
  type         a whole number or null
  read by      pretrain.trainer.parallel.Hardware"""
    assert explained("num_nodes", ["num_nodes=2"]).startswith(expected)


@pytest.mark.parametrize(
    ("key", "words", "lines"),
    [
        ("encoder.embed_dim", ["encoder=vit_large"], ["default     1024, from conf/encoder/vit_large.yaml"]),
        ("encoder.embed_dim", [], ["Width of a token: how many numbers describe a patch.", "1024: mae_vitl"]),
        ("trainer.strategy", ["trainer=cpu"], ["value    one, the default", "type     one of one, ddp, fsdp"]),
        ("objective.view.size", [], ["encoder.img_size, which is 224 here", "Side of the view in pixels"]),
        ("objective.view.size", ["+experiment=mae_cifar10"], ["encoder.img_size, which is 32 here"]),
        ("data.train", [], ["the environment variable PRETRAIN_TRAIN_SHARDS, or null where there is none"]),
        ("base_lr", [], ["read by     pretrain.", "docs/configuration.md, Sizes and length"]),
        ("objective.head", [], ["belongs to objective=dino", "prototypes       65536  number of prototypes"]),
        ("objective.teacher_temp", [], ["belongs to objective=dino; here is what it is with that"]),
        ("objective.local_view.size", ["+experiment=dino_cifar10"], ["none, since objective.local_view is null here"]),
        ("trainer.recompute", [], ["is called trainer.activation_checkpointing now.", "default  false"]),
        ("encoder", [], ["option  vit_base: ViT-B: 12 blocks", "hiera_tiny       Hiera-T: 12 blocks", "patch_size "]),
        ("callbacks", [], ["watchdog    …  ends a run that hangs"]),
        ("schedule.weight_decay.final", ["schedule=dino"], ["Value that the cosine ends at"]),
        ("data.sources.a", ["+data.sources={a: 1}"], ["A part of data.sources: {name: weight}", "1, as typed"]),
        ("data.storage_options", ["data.storage_options={key: abcdefgh}"], ["{key: hidden}, as typed"]),
        ("experiment", [], ["mae_vitl             MAE with ViT-L/16 on ImageNet-1k"]),
    ],
)
def test_lines(key: str, words: list[str], lines: list[str]) -> None:
    text = explained(key, words)
    assert [line for line in lines if plain(line) not in plain(text)] == [], text
    assert max(map(len, text.splitlines())) <= 96


@pytest.mark.parametrize(
    ("key", "words", "sentence"),
    [
        ("encoder.drop_pth", [], "encoder.drop_pth: there is no such key; did you mean encoder.drop_path?"),
        ("drop_path", [], "drop_path: there is no such key; did you mean encoder.drop_path?"),
        ("encoder.stages", ["encoder=vit_small"], "no such key with encoder=vit_small; encoder=hiera_tiny has it"),
        (
            "vit_large",
            [],
            "vit_large is an option, not a key: encoder=vit_large; `pretrain explain encoder` lists them",
        ),
        ("mae_vitl", [], "+experiment=mae_vitl; `pretrain explain experiment` lists them"),
        ("epochs", ["max_step=3"], "max_step=3: there is no such key; did you mean max_steps?"),
        ("hydra.run.dir", [], "Hydra's own"),
    ],
)
def test_what_cannot_be_explained_is_refused(key: str, words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        explained(key, words)
    assert sentence in str(caught.value)


def test_recipes_and_groups_of_other_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "mine.yaml").write_text("defaults: [vit_base, _self_]\ndepth: 3\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "encoder=mine"]
    text = plain(explained("encoder.depth", words))
    assert f"default 3, from {tmp_path}/encoder/mine.yaml" in text
    assert "Number of transformer blocks" in text


def test_comments_stand_beside_a_key_or_right_above_it(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        "# The heading.\n"
        "a: '# no comment' # beside\n"
        "b: [1,\n    2] # after a list\n"
        "# above\n# in two lines\nc: null\n\n"
        "# of nothing\n\n"
        "d: # of a node\n  # of e\n  e: 1\n  f:\n"
        "g: https://host/#fragment\n"
    )
    assert read(path).heading == "The heading."
    comments = {"a": "beside", "b": "after a list", "c": "above in two lines", "d": "of a node", "d.e": "of e"}
    assert read(path).comments == comments


def test_a_key_without_a_comment_has_no_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    one = shared("")
    file = read(folder() / "pretrain.yaml")
    assert meaning(one, "epochs")
    monkeypatch.delitem(file.comments, "epochs")
    assert meaning(one, "epochs") == ""


def test_words_may_stand_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    run(["+experiment=dino_vits16", "encoder.drop_path"])
    first = capsys.readouterr().out
    run(["encoder.drop_path", "+experiment=dino_vits16"])
    assert first == capsys.readouterr().out
    assert "0.1, from conf/experiment/dino_vits16.yaml" in first
    run(["epochs", "base_lr"])
    assert "\n\nbase_lr\n" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code"), [([], 2), (["epochs=3"], 2), (["--help"], 0)])
def test_without_a_key_there_is_the_usage_with_the_groups(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run(words)
    assert left.value.code == code
    assert "    encoder     the network that is pretrained and kept" in capsys.readouterr().out


def test_neither_torch_nor_the_class_is_imported() -> None:
    code = (
        "import sys; from pretrain.cli.explain import run\n"
        "for key in ('encoder.drop_path', 'trainer', 'epochs', 'callbacks.log.wandb', 'optim.foreach'): run([key])\n"
        "sys.exit(str([name for name in ('torch', 'lightning', 'pretrain.encoder.vit') if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "[]"
