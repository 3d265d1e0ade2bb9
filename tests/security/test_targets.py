"""Configurations of strangers: whatever a `_target_`, or Hydra's own part, names, nothing outside the list is built."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import pretrain
from pretrain.config.check import check_nodes, mistakes
from pretrain.config.hydra_settings import flag_mistakes
from pretrain.frozen import load
from pretrain.records import UserError
from tests.job import Job
from tests.program import pretrain as command
from tests.scripts import run_script

FUNCTIONS = [
    "os.system",
    "shutil.rmtree",
    "shutil.which",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "hydra.utils.get_method",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.ops.load_library",
    "torch.utils.cpp_extension.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.distributed.checkpoint.load",
    "lightning.pytorch.cli.LightningCLI",
    "pretrain.replay.Replay",
    "functools.partial",
]
# Classes, of packages that may be named, that start something or write when they are built.
CLASSES = [
    "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler",
    "torch.package.PackageImporter",
    "torch.multiprocessing.SpawnContext",
    "torch.utils.data.DataLoader",
    "torch.utils.tensorboard.SummaryWriter",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.callbacks.Callback",  # a callback, but no encoder
    "lightning.fabric.strategies.launchers.subprocess_script._SubprocessScriptLauncher",
    "torch.optim.SGD",
    "torch.nn.Identity",
    "pretrain.data.module.ShardData",
    "pretrain.trainer.run_folder.RunFolder",
    "pretrain.data.store.cache.Cache",
    "pretrain.data.store.source.Path",  # of another package, imported there
]


@pytest.mark.parametrize("target", [*FUNCTIONS, *CLASSES])
@pytest.mark.parametrize("place", ["encoder", "objective", "callbacks.x"])
def test_only_what_a_place_is_for_is_built(target: str, place: str) -> None:
    node: dict[str, Any] = {"_target_": target, "_partial_": True, "path": "marker"}
    group, _, name = place.partition(".")
    if place == "callbacks.x" and target.endswith("callbacks.Callback"):
        return
    lines = check_nodes({group: {name: node} if name else node})
    assert [line.partition("=")[0] for line in lines] == [f"{place}._target_"]


VIT = {"_target_": "pretrain.encoder.vit.ViT"}
NESTED = [
    ("encoder", VIT | {"depth": {"_target_": "os.system", "command": "touch marker"}}),
    ("encoder", VIT | {"depth": {"_target_": "pretrain.data.module.ShardData", "train": "s3://b/x.tar"}}),
    ("encoder", VIT | {"depth": [{"x": {"_target_": "os.system"}}]}),
    ("encoder", VIT | {"_args_": [{"_target_": "os.system"}]}),
    ("encoder", VIT | {"_recursive_": False, "depth": {"_target_": "os.system"}}),
    ("objective", {"_target_": "pretrain.objective.mae.MAE", "decoder": {"_target_": "os.system", "_partial_": True}}),
    (
        "objective",
        {
            "_target_": "pretrain.objective.mae.MAE",
            "decoder": {"_target_": "pretrain.data.module.ShardData", "_partial_": True, "train": "pipe:touch marker"},
        },
    ),
    ("data", {"_target_": "pretrain.data.module.ShardData", "storage_options": {"x": {"_target_": "os.system"}}}),
    (
        "data",
        {
            "_target_": "pretrain.data.module.ShardData",
            "storage_options": {"x": {"_target_": "pretrain.data.store.cache.Cache", "folder": "marker", "limit": 1}},
        },
    ),
    ("optim", {"_target_": "torch.optim.SGD", "_partial_": True, "lr": {"_target_": "os.system"}}),
]


@pytest.mark.parametrize(("place", "node"), NESTED)
def test_nested_targets_are_refused(place: str, node: dict[str, Any]) -> None:
    text = "\n".join(check_nodes({place: node}))
    assert "must be" in text or "outside what may be built" in text or "there is no such key" in text


def test_asking_for_a_type_imports_nothing() -> None:
    """A node's class is compared with the hint of its place, but only a package that is allowed is imported for it."""
    assert "this" not in sys.modules
    check_nodes({"encoder": VIT | {"depth": {"_target_": "this.s"}}, "x": {"y": {"_target_": "this.s"}}})
    assert "this" not in sys.modules


HYDRA = [
    "+hydra.callbacks.x={_target_: shutil.rmtree, path: marker}",
    "+hydra.callbacks.x={_target_: pretrain.data.store.cache.Cache, folder: marker, limit: 1}",
    "+hydra.launcher.x={_target_: os.system, command: touch marker}",
    "hydra.launcher._target_=os.system",
    "hydra.sweeper._target_=pretrain.data.store.cache.Cache",
    "hydra.job_logging.handlers.console.class=subprocess.Popen",
    "hydra.job_logging.handlers.console.stream='ext://os.system'",
    "+hydra.job_logging.filters.x={'()': os.system, command: touch marker}",
    "+hydra.hydra_logging.handlers.x={class: os.system}",
    "+hydra.job.env_set.LD_PRELOAD=marker.so",
]


@pytest.mark.parametrize("word", HYDRA)
def test_hydras_own_part_is_held_to_the_rule(word: str) -> None:
    lines = [line for line in mistakes(["trainer=cpu", word]) if not line.startswith("data.train")]
    assert lines
    assert all(line.startswith(("hydra.", "`+hydra.")) for line in lines), lines


@pytest.mark.parametrize(
    "word",
    ["--config-path=x", "-cp=x", "--config-name=x", "--config-dir=x", "--config-pa=x", "--experimental-rerun=x.pickle"],
)
def test_no_flag_leads_past_the_check(word: str) -> None:
    (line,) = flag_mistakes(["+experiment=x", word])
    assert line.startswith(word.partition("=")[0])


def test_an_experiment_of_a_stranger_runs_nothing(job: Job) -> None:
    """The whole command, with everything that a file could plant in it."""
    marker, folder = job.tmp / "marker", job.tmp / "conf"
    (folder / "experiment").mkdir(parents=True)
    (job.tmp / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Planted: pass\n")
    touch = {"args": ["touch", str(marker)]}
    content = {
        "hydra": {
            "callbacks": {"x": {"_target_": "planted.Planted"}},
            "sweeper": {"params": {"encoder._target_": "os.system"}},
        },
        "allow_targets": ["planted", "subprocess"],
        "trainer": {"_target_": "subprocess.Popen"} | touch,
        "callback": {"x": {"_target_": "planted.Planted"}},
    }
    text = "# @package _global_\n" + yaml.safe_dump(content)
    (folder / "experiment" / "evil.yaml").write_text(text)
    words = [
        word for word in job.overrides() if not word.startswith(("+experiment", "encoder", "objective", "trainer"))
    ]
    for extra in ([], ["-p", "x"], ["--resolve"], [f"--config-dir={folder}"], ["--multirun"]):
        result = command(f"hydra.searchpath=[file://{folder}]", "+experiment=evil", *words, *extra, cwd=job.tmp)
        assert result.returncode == 1, extra
        assert "Traceback" not in result.stderr
        assert not job.out.exists()
        if extra == []:
            assert "a file asks for it, and it counts only where it is typed" in result.stderr
            assert "hydra.callbacks.x._target_=planted.Planted" in result.stderr
            assert "hydra.sweeper.params: cannot be checked" in result.stderr
    assert not marker.exists()


@pytest.mark.parametrize("target", ["subprocess.Popen", "logging.FileHandler", "torch.nn.Identity", "torch.hub.load"])
def test_a_strangers_run_is_not_built(job: Job, target: str) -> None:
    """The files of a run that was downloaded: what they allow themselves does not count."""
    job.run("max_steps=1")
    marker, path = job.tmp / "marker", job.out / "config.yaml"
    original = OmegaConf.load(path)
    for place in ("encoder", "objective", "objective.decoder", "objective.view", "encoder.depth"):
        cfg = original.copy()
        OmegaConf.update(cfg, place, {"_target_": target, "filename": str(marker), "args": ["touch", str(marker)]})
        cfg.allow_targets = [target.partition(".")[0]]
        path.write_text(OmegaConf.to_yaml(cfg))
        for read in (load, pretrain.load):
            with pytest.raises(UserError):
                read(job.out)
        result = run_script("export", f"checkpoint={job.out}", "format=official", f"out={job.tmp / 'x'}")
        assert result.returncode == 1
        assert "Traceback" not in result.stderr, result.stderr
    card = {"format": "official", "run_id": "r", "step": 1, "view": {"size": 8}, "pool": "mean"}
    (job.tmp / "e").mkdir()
    planted = card | {"encoder": {"_target_": target, "filename": str(marker)}, "allow_targets": ["subprocess"]}
    (job.tmp / "e" / "pretrain.json").write_text(json.dumps(planted))
    for read in (load, pretrain.load):
        with pytest.raises(UserError):
            read(job.tmp / "e")
    assert not marker.exists()


def test_a_run_is_built_of_what_was_checked(job: Job) -> None:
    """Its file may not lead from a node that is checked to another one, nor hide one in YAML's own tags."""
    job.run("max_steps=1")
    marker, path = job.tmp / "marker", job.out / "config.yaml"
    original = path.read_text()
    hidden = f"hidden:\n  _target_: os.system\n  command: touch {marker}\n"
    python = f"!!python/object/apply:os.system ['touch {marker}']"
    for planted in ("encoder: ${hidden}\nwas:", f"encoder: {python}\nwas:", f"x: {python}\nencoder:"):
        path.write_text(hidden + original.replace("encoder:", planted, 1))
        for read in (load, pretrain.load):
            with pytest.raises(UserError, match=r"encoder._target_ is missing|cannot be read"):
                read(job.out)
    assert not marker.exists()


def test_ones_own_classes_are_allowed_by_word(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    (job.tmp / "mine_of_test.py").write_text("from pretrain.encoder.vit import ViT\nclass Mine(ViT):\n    pass\n")
    monkeypatch.syspath_prepend(job.tmp)
    words = ["encoder._target_=mine_of_test.Mine", "max_steps=1"]
    assert any("outside what may be built" in line for line in mistakes(job.overrides(*words)))
    job.run(*words, "allow_targets=[mine_of_test]")
    with pytest.raises(UserError, match="add its package to allow_targets"):
        load(job.out)
    with pytest.raises(UserError, match="add its package to allow_targets"):
        pretrain.load(job.out)
    assert type(load(job.out, allow_targets=["mine_of_test"]).encoder).__name__ == "Mine"
    for word in ("mine_of_test", ["mine_of_test"]):
        assert type(pretrain.load(job.out, allow_targets=word).module).__name__ == "Mine"
    logging.getLogger().info("built")
