"""Who imports whom: the floors of the architecture, read off the syntax trees."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pretrain"

# What any file may import: the records, and what knows libraries alone.
BOTTOM = {
    "config.problem",
    "config.secret",
    "records",
    "random",
    "files",
    "precision",
    "launch.process",
    "launch.world",
}

ALLOWED = {
    "records": set(),
    "random": set(),
    "files": set(),
    "precision": set(),
    "launch": set(),
    "config": set(),
    "cli": {"*"},
    "optim": set(),
    "nn": set(),
    "view": set(),
    "encoder": {"nn"},
    "data": {"view"},
    "doctor": {"data", "view"},
    "objective": {"nn", "optim.schedule", "view.spec", "encoder.encoder"},
    "probe": {"optim", "encoder.encoder"},
    "plan": {"config", "count"},
    "count": set(),
    "scaling": {"objective.objective", "plan", "trainer.shard"},
    "interop": {"config", "encoder.encoder", "objective.objective", "nn", "view.spec"},
    "callbacks": {"assemble", "data", "plan", "probe", "trainer", "view"},
    "trainer": {"config", "data", "optim", "objective.objective"},
    "assemble": {"config", "encoder.encoder", "objective.objective"},
    "build": {"*"},
    "proof": {"callbacks.journal", "trainer.checkpoint"},
    "frozen": {"assemble", "config", "data", "encoder.encoder", "interop", "objective.objective", "probe"}
    | {"trainer.checkpoint", "trainer.trust", "view"},
    "replay": {"data", "frozen", "objective.objective", "optim", "trainer.incident", "trainer.trust", "view"},
    "pretrained": {"encoder.encoder", "frozen", "probe.features", "view"},
    "training": {
        "assemble",
        "build",
        "callbacks.journal",
        "cli.outcome",
        "config",
        "data.stream.loader",
        "launch.local",
    }
    | {"trainer.checkpoint", "trainer.run_folder"},
    "__main__": {"assemble", "build", "cli", "config", "launch"},
}

# Named by a `_target_` in a yaml and imported by nobody: a new one is one py, one yaml, one test.
LEAVES = {"encoder.hiera", "encoder.vit", "objective.dino", "objective.mae"}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return {name.removeprefix("pretrain.") for name in found if name.startswith("pretrain.")}


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = ALLOWED[home] | BOTTOM | {home}
    for name in imports(path):
        if not is_module(name) or "*" in allowed:
            continue
        assert any(name == one or name.startswith(f"{one}.") for one in allowed) or any(
            one.startswith(f"{name}.") for one in allowed
        ), f"{path.relative_to(ROOT)} imports pretrain.{name}"


def room(name: str) -> str:
    """The room that a module is in, or the module itself where it stands alone. `data` has rooms inside."""
    if name == "__main__":
        return "cli"  # `pretrain train` is the same program
    parts = name.split(".")
    depth = 2 if parts[0] == "data" and (PACKAGE / "data" / [*parts, ""][1]).is_dir() else 1
    return ".".join(parts[:depth])


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        home = room(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        arrows.setdefault(home, set()).update({room(name) for name in imports(path) if is_module(name)} - {home})
    assert len(list(TopologicalSorter(arrows).static_order())) == len(arrows)


def test_every_part_has_a_rule() -> None:
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} == ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_leaves_are_imported_by_nobody(path: Path) -> None:
    assert not imports(path) & LEAVES


def test_the_core_imports_no_optional_package() -> None:
    """torchvision, timm and transformers belong to extras: no file may need them to be imported."""
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {
                "torchvision",
                "timm",
                "transformers",
                "lightly",
                "flash_attn",
                "onnx",
                "pretrain_region",
                "tifffile",
                "pytorch_lightning",
            }


def test_no_configuration_below_build() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] in {
            "config",
            "build.py",
            "plan.py",
            "cli",
            "training.py",
            "__main__.py",
        }:
            continue
        assert "omegaconf" not in path.read_text(), path
