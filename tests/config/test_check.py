"""Mistakes are found before anything is built, all at once; recipes compose to the published numbers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pretrain.assemble import objective_of
from pretrain.config.arguments import quote, split_list
from pretrain.config.check import check, check_nodes, mistakes
from pretrain.config.overrides import composed, folder
from pretrain.config.signature import locate
from pretrain.plan import plan
from tests.data.shards import write_shards

EXPERIMENTS = sorted(path.stem for path in (folder() / "experiment").glob("*.yaml"))
PUBLISHED = ("mae_vitb", "mae_vitl", "mae_vith")


def plain(cfg: Any) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return content


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_checks(experiment: str, tmp_path: Path) -> None:
    write_shards(tmp_path, [1])
    cfg = composed([f"+experiment={experiment}", "trainer=cpu", f"data.train={tmp_path}"])
    assert check(cfg) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_trainer_cpu_brings_every_experiment_back_to_a_cpu(experiment: str) -> None:
    assert plain(composed([f"+experiment={experiment}", "trainer=cpu"]).trainer) == plain(
        composed(["trainer=cpu"]).trainer
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_opens_with_its_card(experiment: str) -> None:
    text = (folder() / "experiment" / f"{experiment}.yaml").read_text()
    for word in ("paper", "result", "cost", "command", "status"):
        assert f"#   {word}" in text, word
    status = text.split("#   status")[1].split("\n")[0]
    assert any(known in status for known in ("proven-equal", "curve-checked", "not-run"))


def nodes(content: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(content, dict):
        return []
    here = [(path, content)] if "_target_" in content else []
    return here + [found for key, value in content.items() for found in nodes(value, f"{path}.{key}".lstrip("."))]


GROUPS = sorted((path.parent.name, path.stem) for path in folder().glob("*/*.yaml") if path.parent.name != "experiment")


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_yaml_lists_every_argument_of_its_constructor(group: str, option: str) -> None:
    """So `--cfg job` documents a run and no override needs a `+`. What is given at run time has no default."""
    for path, node in nodes(plain(composed([f"{group}={option}"])[group]), group):
        target, reason = locate(node["_target_"])
        assert target is not None, reason
        for name, parameter in inspect.signature(target).parameters.items():
            given_later = node.get("_partial_") and parameter.default is parameter.empty
            assert name in node or given_later, f"{path} lacks {name}"


@pytest.mark.parametrize(
    ("experiment", "encoder"),
    [
        ("mae_vitb", {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}),
        ("mae_vitl", {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}),
        ("mae_vith", {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}),
        ("mae_vits", {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}),
    ],
)
def test_recipes_are_the_published_ones(experiment: str, encoder: dict[str, int]) -> None:
    """Every number of PRETRAIN.md and of the paper's table 8."""
    cfg = plain(composed([f"+experiment={experiment}"]))
    shared = {"img_size": 224, "in_chans": 3, "mlp_ratio": 4.0, "qkv_bias": True, "norm_eps": 1e-6}
    shared |= {"drop_path": 0.0, "drop_path_mode": "sample"}
    shared |= {"position": "fixed", "position_offset": 0.0, "distribution": "xavier"}
    assert cfg["encoder"] == {"_target_": "pretrain.encoder.vit.ViT"} | shared | encoder
    assert cfg["base_lr"] == 1.5e-4
    assert (cfg["epochs"], cfg["warmup_epochs"]) == (800, 40)
    objective = cfg["objective"]
    assert (objective["mask_ratio"], objective["norm_pix_loss"], objective["pixel_order"]) == (0.75, True, "hwc")
    assert objective["decoder"]["position"] == "fixed"
    shared_by_mae_recipes(cfg)


@pytest.mark.parametrize(
    ("size", "embed_dim", "num_heads", "stages", "drop_path"),
    [
        ("tiny", 96, 1, [1, 2, 7, 2], 0.0),
        ("small", 96, 1, [1, 2, 11, 2], 0.0),
        ("base", 96, 1, [2, 3, 16, 3], 0.2),
        ("base_plus", 112, 2, [2, 3, 16, 3], 0.2),
        ("large", 144, 2, [2, 6, 36, 4], 0.2),
        ("huge", 256, 4, [2, 6, 36, 4], 0.3),
    ],
)
def test_hiera_recipes_are_the_published_ones(
    size: str, embed_dim: int, num_heads: int, stages: list[int], drop_path: float
) -> None:
    """The paper's appendix, and for the learning rate 8e-4 at a batch of 4096."""
    overrides = [f"+experiment=mae_hiera_{size}"]
    cfg, sizes = plain(composed(overrides)), plan(composed(overrides), num_samples=1281167, devices=64)
    shared = {"img_size": 224, "in_chans": 3, "mlp_ratio": 4.0, "norm_eps": 1e-6, "q_pool": 2, "mask_unit_size": 8}
    shared |= {"mask_unit_attn": [True, True, False, False], "patch_kernel": 7, "patch_stride": 4, "patch_padding": 3}
    shared |= {"multi_scale_fusion": True, "position": "absolute", "global_pos_size": 14, "drop_path_mode": "sample"}
    mine = {"embed_dim": embed_dim, "num_heads": num_heads, "stages": stages, "drop_path": drop_path}
    assert cfg["encoder"] == {"_target_": "pretrain.encoder.hiera.Hiera"} | shared | mine
    assert sizes.lr == pytest.approx(8e-4)
    assert (cfg["epochs"], cfg["warmup_epochs"]) == (1600, 40)
    objective = cfg["objective"]
    assert (objective["mask_ratio"], objective["norm_pix_loss"], objective["pixel_order"]) == (0.6, True, "chw")
    assert objective["decoder"]["position"] == "learned"
    alone = plain(composed([f"encoder=hiera_{size}"]))["encoder"]
    assert alone == cfg["encoder"] | {"q_pool": 3, "multi_scale_fusion": False, "drop_path": 0.0}
    shared_by_mae_recipes(cfg)


def shared_by_mae_recipes(cfg: dict[str, Any]) -> None:
    assert cfg["global_batch_size"] == 4096
    assert cfg["clip_grad_norm"] is None
    assert cfg["optim"]["_target_"] == "torch.optim.AdamW"
    assert cfg["optim"]["betas"] == [0.9, 0.95]
    assert cfg["optim"]["weight_decay"] == 0.05
    assert cfg["schedule"]["lr"]["final"] == 0.0
    objective = cfg["objective"]
    decoder = objective["decoder"]
    assert (decoder["embed_dim"], decoder["depth"], decoder["num_heads"]) == (512, 8, 16)
    view = objective["view"]
    assert (view["size"], view["scale"], view["interpolation"], view["flip"]) == (224, [0.2, 1.0], "bicubic", 0.5)
    assert (view["mean"], view["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert cfg["data"]["num_samples"] == 1281167
    assert cfg["trainer"]["strategy"] == "fsdp"


@pytest.mark.parametrize(
    ("experiment", "embed_dim", "num_heads", "patch_size", "norm_last_layer", "epochs", "scales", "locals_"),
    [
        ("dino_vits16", 384, 6, 16, False, 300, ([0.4, 1.0], [0.05, 0.4]), 8),
        ("dino_vitb16", 768, 12, 16, True, 300, ([0.4, 1.0], [0.05, 0.4]), 8),
        ("dino_vits8", 384, 6, 8, False, 800, ([0.25, 1.0], [0.05, 0.25]), 10),
        ("dino_hiera_base", 96, 1, None, True, 300, ([0.4, 1.0], [0.05, 0.4]), 8),
    ],
)
def test_dino_recipes_are_the_published_ones(
    experiment: str,
    embed_dim: int,
    num_heads: int,
    patch_size: int | None,
    norm_last_layer: bool,
    epochs: int,
    scales: tuple[list[float], list[float]],
    locals_: int,
) -> None:
    """The official code's defaults, and what its README and the paper say of each run."""
    whole = composed([f"+experiment={experiment}"])
    cfg, sizes = plain(whole), plan(whole, num_samples=1281167, devices=16)
    encoder, objective = cfg["encoder"], cfg["objective"]
    assert (encoder["embed_dim"], encoder["num_heads"], encoder.get("patch_size")) == (embed_dim, num_heads, patch_size)
    assert encoder["drop_path"] == 0.1
    if patch_size is not None:
        assert (encoder["position"], encoder["position_offset"], encoder["distribution"]) == ("learned", 0.1, "normal")
    assert sizes.lr == pytest.approx(5e-4 * 1024 / 256)
    assert (sizes.epochs, sizes.total_steps, sizes.warmup) == (epochs, epochs * 1251, 10 / epochs)
    assert cfg["optim"]["_target_"] == "torch.optim.AdamW"
    assert cfg["optim"]["betas"] == [0.9, 0.999]
    assert (cfg["clip_grad_norm"], cfg["clip_grad_by"]) == (3.0, "parameter")
    assert cfg["schedule"]["lr"]["final"] == 1e-6
    decay = cfg["schedule"]["weight_decay"]
    assert (decay["peak"], decay["final"], decay["warmup"]) == (0.04, 0.4, 0.0)
    head = objective["head"]
    assert (head["prototypes"], head["nlayers"], head["hidden_dim"], head["bottleneck_dim"]) == (65536, 3, 2048, 256)
    assert head["norm_last_layer"] == norm_last_layer
    temperatures = [objective[f"{name}temp"] for name in ("student_", "warmup_teacher_", "teacher_")]
    assert temperatures == [0.1, 0.04, 0.07]
    assert objective["warmup_teacher_temp_epochs"] == 30
    assert (objective["center_momentum"], objective["momentum_teacher"]) == (0.9, 0.996)
    assert (objective["final_momentum_teacher"], objective["freeze_last_layer"]) == (1.0, 1)
    first, second = objective["global_view"], objective["local_view"]
    assert (first["size"], first["count"], second["size"], second["count"]) == (224, 2, 96, locals_)
    assert (first["scale"], second["scale"]) == scales
    assert first["interpolation"] == second["interpolation"] == "bicubic"
    shared = {"_target_": "pretrain.view.spec.Colors", "jitter": 0.8, "brightness": 0.4, "contrast": 0.4}
    shared |= {"saturation": 0.2, "hue": 0.1, "grayscale": 0.2, "blur_sigma": [0.1, 2.0], "solarize_threshold": 128}
    assert first["colors"] == shared | {"blur": [1.0, 0.1], "solarize": [0.0, 0.2]}
    assert second["colors"] == shared | {"blur": 0.5, "solarize": 0.0}
    assert not list(objective_of(whole).advice(1281167, 1024, sizes.total_steps, whole.epochs))


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_plan_of_a_recipe_is_the_published_one(experiment: str) -> None:
    sizes = plan(composed([f"+experiment={experiment}"]), num_samples=1281167, devices=64)
    assert sizes.lr == pytest.approx(2.4e-3)
    assert (sizes.steps_per_epoch, sizes.total_steps) == (312, 800 * 312)
    assert sizes.warmup == 0.05
    assert (sizes.micro_batch, sizes.accumulation) == (64, 1)


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    overrides = [
        "+experiment=mae_vitb",
        "trainer=cpu",
        "encoder.depht=24",
        "encoder.img_size=225",
        "encoder.num_heads=7",
        "encoder.mlp_ratio=big",
        "objective.mask_ratio=1.5",
        "objective.decoder.num_heads=5",
        "resume=maybe",
        "epochs=many",
        "seed=-1",
        "max_steps=3",
        "max_steps=4",
        "optim=sgd",
        "nonsense.key=1",
        f"data.train={tmp_path}/x-*.tar",
        f"data.val={tmp_path}/y.tar",
        "data.num_workers=-2",
    ]
    lines = mistakes(overrides)
    for expected in [
        "encoder.depht=24: there is no such key; did you mean encoder.depth?",
        "encoder.img_size=225: must be a positive multiple of `patch_size` (=16)",
        "encoder.num_heads=7: must divide `embed_dim` (=768)",
        "encoder.mlp_ratio=big: must be a number",
        "objective.mask_ratio=1.5: must be between 0 and 1, both excluded",
        "objective.decoder.num_heads=5: must divide `embed_dim` (=512)",
        "resume=maybe: must be one of auto, must, never",
        "epochs=many: must be a whole number",
        "seed=-1: must be between 0 and 2⁶³ − 1",
        "max_steps is given 2 times (a shell expands unquoted braces into several): give it once",
        "optim=sgd: there is no such option; one of adamw",
        "nonsense.key=1: there is no such key",
        f"data.train={tmp_path}/x-*.tar: no shard matches `{tmp_path}/x-*.tar`",
        f"data.val={tmp_path}/y.tar: no shard matches `{tmp_path}/y.tar`",
        "data.num_workers=-2: must be at least 0",
    ]:
        assert expected in lines
    assert len(lines) == 15


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("experiment=mae_vitb", "write +experiment=mae_vitb"),
        ("+experiment=mae_vitz", "there is no such option; one of dino_cifar10"),
        ("mask_ratio=0.5", "did you mean objective.mask_ratio?"),
        ("data.train=a,b", "a list is written [a,b]"),
        ("+new=1", "new=1: there is no such key"),
        ("encoder.qkv_bias=1", "must be true or false"),
        ("optim.betas=0.9", "must be a list of"),
        ("max_minutes=-3", "must be positive"),
        ("encoder.depth={a", "is not understood"),
        ("+encoder._args_=[1]", "there is no such key"),
        ("++objectve.mask_ratio=0.5", "objectve: there is no such group; did you mean objective?"),
        ("++callbacks.lg.every_steps=5", "callbacks.lg={'every_steps': 5}: is no callback"),
        ("+callbacks.wandb=offline", "callbacks.wandb=offline: is no callback"),
        ("schedule.lr=null", "schedule.lr=null: is no schedule"),
        ("checkpoint=null", "checkpoint=None: there is no such option; one of local"),
        ("~optim", "optim is missing: choose one by optim=…"),
        ("optim.betas=[0.9]", "must be a list of 2 values"),
        ("base_lr=nan", "base_lr=nan: must be a number"),
        ("encoder.mlp_ratio=0", "encoder.mlp_ratio=0: must be positive"),
        ("objective.view.mean=[0.5,0.5]", "must be three numbers"),
        ("encoder=vit_small,vit_base", "a sweep needs --multirun"),
    ],
)
def test_each_mistake_says_what_to_do(override: str, message: str) -> None:
    assert any(message in line for line in mistakes(["trainer=cpu", override])), mistakes(["trainer=cpu", override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.local_view=0", "objective.local_view=0: must be ViewSpec or null"),
        ("objective.local_view=false", "objective.local_view=False: must be ViewSpec or null"),
        ("objective.global_view.colors=0", "objective.global_view.colors=0: must be Colors or null"),
        (
            "objective.head.prototypes=1",
            "objective.head.prototypes=1: must be at least 2: with one there is nothing to tell apart",
        ),
    ],
)
def test_mistakes_about_views_and_prototypes(override: str, message: str) -> None:
    assert message in mistakes(["+experiment=dino_vits16", "trainer=cpu", "data.train=x", override])


@pytest.mark.parametrize("experiment", ["dino_digits", "dino_cifar10", "dino_cifar10_vits"])
def test_no_small_recipe_is_advised_against(experiment: str) -> None:
    cfg = composed([f"+experiment={experiment}"])
    sizes = plan(cfg, num_samples=cfg.data.num_samples, devices=1)
    assert not list(objective_of(cfg).advice(sizes.num_samples, sizes.global_batch_size, sizes.total_steps, cfg.epochs))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["+experiment=mae_cifar10", "objective=dino"], ["objective=dino: the settings of +experiment=mae_cifar10"]),
        (
            ["+experiment=dino_cifar10", "encoder=hiera_tiny"],
            ["encoder=hiera_tiny: the settings of +experiment=dino"],
        ),
        (["+experiment=mae_vitb", "objective=dino"], []),  # fits: nothing of the recipe is the objective's own
        (["+experiment=mae_vitb", "encoder=vit_tiny", "encoder.depht=3"], []),  # a slip, not the recipe's doing
    ],
)
def test_what_does_not_fit_its_recipe_is_said(words: list[str], expected: list[str]) -> None:
    found = [line for line in mistakes([*words, "trainer=cpu"]) if "the settings of" in line]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


def test_own_experiments_are_found_whatever_else_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    words = [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine", "trainer=cpu", f"data.train={tmp_path}"]
    lines = mistakes(["+experiment=mine", "encoder.depht=3", *words[:1], *words[2:]])
    assert not any(line.startswith("experiment") for line in lines)
    assert any("did you mean encoder.depth?" in line for line in lines)


def test_without_a_gpu_or_shards_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("PRETRAIN_TRAIN_SHARDS", raising=False)
    lines = mistakes(["+experiment=mae_vitl"])
    assert len(lines) == 2
    assert "trainer=cpu" in lines[1]
    assert "PRETRAIN_TRAIN_SHARDS" in lines[0]


def test_shards_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_shards(tmp_path, [1, 1])
    monkeypatch.setenv("PRETRAIN_TRAIN_SHARDS", str(tmp_path / "s-{000000..000001}.tar"))
    assert mistakes(["+experiment=mae_vitl", "trainer=cpu"]) == []


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "shutil.rmtree",
        "subprocess.Popen",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "pretrain.os.system",
        "pretrain.data.store.source.subprocess.Popen",
        "pretrainer.Evil",
        "numpy.ndarray",
    ],
)
def test_only_allow_listed_classes_can_be_targets(target: str) -> None:
    (line,) = check_nodes({"optim": {"_target_": target}})
    assert line.startswith(f"optim._target_={target}: ")


def test_a_users_own_package_can_be_allowed() -> None:
    node = {"_target_": "collections.OrderedDict"}
    assert "add its package to allow_targets" in check_nodes({"x": node})[0]
    assert check_nodes({"x": node}, ["collections"]) == []


# ── quoting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.train=d/train-{000000..000015}.tar", "d/train-{000000..000015}.tar"),
        ("data.train=d/x-{a,b}.tar", "d/x-{a,b}.tar"),
        ("data.train=[d/x-{a,b}.tar,e/*.tar]", ["d/x-{a,b}.tar", "e/*.tar"]),
        ("data.train=d/[ab]*.tar", "d/[ab]*.tar"),
        ("data.train=http://h/x.tar?a=b&c=d", "http://h/x.tar?a=b&c=d"),
        ("data.train=pipe:curl -s 'u' | cat", "pipe:curl -s 'u' | cat"),
        ("data.train={pipe:cat a,pipe:cat b}", "{pipe:cat a,pipe:cat b}"),
        ("data.train={http://h/a.tar,http://h/b.tar}", "{http://h/a.tar,http://h/b.tar}"),
        ("data.train={a,b}/x.tar", "{a,b}/x.tar"),
        (
            "data.train={a: d/x-{00..15}.tar, b-c:[e,f/*.tar], d: http://h/x.tar?a=b, e: 'q'}",
            {"a": "d/x-{00..15}.tar", "b-c": ["e", "f/*.tar"], "d": "http://h/x.tar?a=b", "e": "q"},
        ),
        ("output_dir=runs/a b (1)", "runs/a b (1)"),
        ("output_dir=runs/lr=3", "runs/lr=3"),
        ("data.train='already quoted'", "already quoted"),
        ("data.val=null", None),
        ("output_dir=a\\b\\'c\\", "a\\b\\'c\\"),
        ("data.train=pipe:sed 's/\\(.\\)/x/' y", "pipe:sed 's/\\(.\\)/x/' y"),
    ],
)
def test_shard_lists_and_paths_reach_hydra_as_they_are_typed(typed: str, value: Any) -> None:
    (quoted,) = quote([typed])
    assert quote([quoted]) == [quoted]  # ranks are started with the same words again
    cfg = composed([quoted])
    key = typed.partition("=")[0]
    found = OmegaConf.select(cfg, key)
    assert (list(found) if isinstance(value, list) else found) == value


def test_patterns_of_one_data_set_of_several_are_quoted() -> None:
    both = ["data.train={a: x, b: y}", "data.train.a=d/x-{00..15}.tar"]
    assert composed(quote(both)).data.train == {"a": "d/x-{00..15}.tar", "b": "y"}


def test_other_words_are_left_alone() -> None:
    words = ["+experiment=x", "lr=1,2", "encoder.img_size=[224,112]", "data.train=a,b", "--cfg", "job"]
    assert quote(words) == words
    assert OverridesParser.create().parse_override("data.train=a,b").is_sweep_override()


def test_lists_are_split_outside_brackets_and_quotes() -> None:
    assert split_list("a,{b,c},'d,e',[f,g]") == ["a", "{b,c}", "'d,e'", "[f,g]"]
