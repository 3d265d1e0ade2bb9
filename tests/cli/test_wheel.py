"""What `pip install` brings, and that it is all that is needed: from a folder of images to weights that timm loads.

The environment is a new one that holds the wheel alone, and sees the libraries of the one that the tests run in, but
not what is installed there in editable form. Nothing is run in the checkout.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.scripts import FOLDER

ROOT = FOLDER.parent
SMALL = ["encoder.embed_dim=48", "encoder.depth=1", "objective.decoder.embed_dim=48", "objective.decoder.depth=1"]
SMALL += ["trainer=cpu", "global_batch_size=4", "data.num_workers=0", "callbacks.log.wandb=disabled"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    builder = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *builder, f"--wheel-dir={out}", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("pretrain-*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([sys.executable, *install], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # afterwards, since pip would take what is installed there for this environment's own
    (site / "libraries.pth").write_text("".join(f"{sysconfig.get_path(name)}\n" for name in ("purelib", "platlib")))
    return folder / "bin"


def environment() -> dict[str, str]:
    """This process's, without what leads to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PRETRAIN"))}


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_carries_all_that_is_not_python(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "slurm", "container"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        assert files
        assert {f"pretrain/{path.relative_to(ROOT)}" for path in files} <= names
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "pretrain").rglob("*.py")}
    assert package <= names


def test_from_images_to_timm_without_a_checkout(bare: Path, tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "IMAGES" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(path)
    pretrain = bare / "pretrain"
    assert "shards" in run(pretrain, "--help", folder=tmp_path)
    where = run(bare / "python", "-c", "import pretrain; print(pretrain.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(bare.parent)
    run(pretrain, "shards", "images=IMAGES", "out=SHARDS", folder=tmp_path)
    words = ["+experiment=mae_digits", *SMALL, "max_steps=20", "data.train=SHARDS", "output_dir=RUN"]
    assert "all 20 steps are done" in run(pretrain, "train", *words, folder=tmp_path)
    probe = ["knn", "checkpoint=RUN", "train=SHARDS", "val=SHARDS", "num_workers=0", "k=1", "out=knn.json"]
    assert "accuracy " in run(pretrain, "probe", *probe, folder=tmp_path)
    assert (tmp_path / "knn.json").is_file()
    pytest.importorskip("timm")
    run(pretrain, "export", "checkpoint=RUN", "format=timm", "out=EXPORT", folder=tmp_path)
    load = "import timm; print(timm.create_model('local-dir:EXPORT', pretrained=True, num_classes=3).embed_dim)"
    assert run(bare / "python", "-c", load, folder=tmp_path) == "48\n"
    run(pretrain, "slurm", "out=slurm", folder=tmp_path)
    assert {path.name for path in (tmp_path / "slurm").glob("*.sbatch")} == {
        "pretrain.sbatch",
        "probe.sbatch",
        "export.sbatch",
    }
