"""Every command of the README and of docs/ is run, in the order in which it stands there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn import datasets
from sklearn.utils import Bunch

import pretrain as package
from pretrain import build, proof
from pretrain.assemble import instantiate
from pretrain.config.arguments import quote
from pretrain.config.check import mistakes
from pretrain.config.overrides import composed
from pretrain.interop import export
from pretrain.training import Trained
from pretrain.training import train as train_here
from tests.data.shards import image_bytes, write_shards, write_tar
from tests.data.test_arrays import array_of, npy
from tests.program import pretrain
from tests.scripts import run_command, run_script
from tests.slurm.dry import run_batch

ROOT = Path(__file__).parent.parent
LONG = ("performance.md", "results.md", "scaling.md")  # their commands are long also when they are shortened
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of the page's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the placeholders of the documents stand for, a page's own to write in."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in SHARDS and MORE, of arrays in BANDS, files in IMAGES, such as ImageNet's in IMAGENET; a run in RUN."""
    tmp_path = tmp_path_factory.mktemp("docs")
    write_shards(tmp_path / "all", [10, 7, 1, 23])
    (tmp_path / "SHARDS").mkdir()
    for number, path in enumerate(sorted((tmp_path / "all").iterdir())):
        shutil.copy(path, tmp_path / "SHARDS" / f"train-{number:06d}.tar")
    shutil.copy(tmp_path / "all" / "s-000000.tar", tmp_path / "SHARDS" / "val-000000.tar")
    write_shards(tmp_path / "MORE", [3])
    (tmp_path / "BANDS").mkdir()
    write_tar(tmp_path / "BANDS" / "s.tar", [(f"{number}.npy", npy(array_of(number))) for number in range(12)])
    for number in range(12):
        path = tmp_path / "IMAGES" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        for name in ("train", "val"):
            same = tmp_path / "IMAGENET" / name / f"n0000000{number % 2}" / f"{number}.JPEG"
            same.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, same)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        train(["+experiment=mae_digits", "data.train=SHARDS/train-*.tar", "output_dir=RUN"])
    return tmp_path


SHRINK = {
    "trainer": "cpu",
    "global_batch_size": "4",
    "data.num_workers": "0",
    "callbacks.log.wandb": "disabled",
}
MAE = {"decoder.embed_dim": "48", "decoder.depth": "1"}
DINO = {"head.prototypes": "32", "head.hidden_dim": "32", "head.bottleneck_dim": "8"}
DINO |= {"global_view.size": "32"}
LOCAL = {"local_view.size": "32", "local_view.count": "2"}
VIT = {"img_size": "8", "patch_size": "4", "embed_dim": "48", "depth": "1"}
HIERA = {"img_size": "32", "embed_dim": "8", "stages": "[1,1,1,1]"}
HIERA |= {"patch_kernel": "3", "patch_stride": "1", "patch_padding": "1", "q_pool": "2", "mask_unit_size": "8"}
HIERA |= {"mask_unit_attn": "[true,true,false,false]"}


def small(words: list[str]) -> list[str]:
    """What makes everything small that a command does not set itself."""
    chosen = composed([word for word in words if word.startswith(("+experiment=", "encoder=", "objective="))])
    sizes = HIERA if chosen.encoder._target_.endswith("Hiera") else VIT
    given = {word.partition("=")[0] for word in words}
    objective = DINO if chosen.objective._target_.endswith("DINO") else MAE
    views = LOCAL if chosen.objective.get("local_view") else {}
    everything = SHRINK | {f"encoder.{key}": value for key, value in sizes.items()}
    everything |= {f"objective.{key}": value for key, value in (objective | views).items()}
    return [f"{key}={value}" for key, value in everything.items() if key not in given]


def train(words: list[str]) -> None:
    """A training command with everything small that it does not set itself, for two steps, into an empty folder."""
    words = [word.replace("{000000..001281}", "{000000..000003}") for word in words]
    words = [word for word in words if word.partition("=")[0] not in ("max_steps", "max_minutes")]
    overrides = quote([*words, *small(words), "max_steps=2"])
    assert mistakes(overrides) == []
    cfg = composed(overrides)
    shutil.rmtree(cfg.output_dir, ignore_errors=True)
    build.run_of(cfg).fit()


def bench(script: str, words: list[str]) -> None:
    """A benchmark of something small, for one round, on the CPU."""
    kept = [word for word in words if word.partition("=")[0] not in ("trainer", "batch", "rounds")]
    result = run_script(script, *kept, *small(kept), "batch=2", "rounds=1")
    assert result.returncode == 0, result.stderr


def count(words: list[str]) -> None:
    """Recipes counted. Of several all exist, and the smallest of each family is run: each takes some seconds."""
    if words[0].startswith("experiments="):
        recipes = words[0].partition("=")[2].strip("[]").split(",")
        assert all((ROOT / "conf" / "experiment" / f"{name}.yaml").exists() for name in recipes)
        words = ["experiments=[mae_vitb,mae_hiera_tiny]", *words[1:]]
        assert {"mae_vitb", "mae_hiera_tiny"} <= set(recipes)
    result = run_script("flops", *words)
    assert result.returncode == 0, result.stderr
    committed = json.loads((ROOT / "docs" / "measurements" / "flops.json").read_text())
    out = next((word.partition("=")[2] for word in words if word.startswith("out=")), None)
    for name, counts in json.loads(Path(out).read_text()).items() if out else []:
        assert name == "run" or counts == committed[name], name


def scale(words: list[str]) -> None:
    """Recipes on paper, the first and the last of several; a dry run is one of something small."""
    first, *_, last = words[0].partition("=")[2].strip("[]").split(",")
    out = next(word.partition("=")[2] for word in words if word.startswith("out="))
    if "dry_run=true" in words:
        recipe = [f"+experiment={first}"]
        result = run_command(
            "scaling", *recipe, *words[1:], *small([*recipe, "global_batch_size=64"]), "global_batch_size=64"
        )
        assert result.returncode == 0, result.stderr
        found = json.loads(Path(out).read_text())[first]
        assert all(found[layout]["counted"]["held"] == found[layout]["computed"]["held"] for layout in ("ddp", "full"))
        return
    result = run_command("scaling", f"experiments=[{first},{last}]", *words[1:])
    assert result.returncode == 0, result.stderr
    committed = json.loads((ROOT / "docs" / "measurements" / "scaling.json").read_text())
    for name, found in json.loads(Path(out).read_text()).items():
        assert name == "run" or found == committed[name], name


def take_in(words: list[str]) -> None:
    """Weights of others, here of a small encoder that the test stores as the original repository would."""
    given = dict(word.split("=", 1) for word in words)
    sizes = [word for word in small(words) if word.startswith("encoder.")]
    encoder = instantiate(composed([f"encoder={given['encoder']}", *sizes]).encoder)
    torch.save({"model_state": encoder.state_dict()}, given["weights"])
    result = run_command("import", *words, *sizes)
    assert result.returncode == 0, result.stderr


def measure_scales(words: list[str]) -> None:
    """On photographs large enough, of one colour each."""
    images = [(f"{number}.jpg", image_bytes(number, size=(350, 360), kind="JPEG")) for number in range(9)]
    write_tar(Path("photographs.tar"), images)
    words = [word.replace("data=SHARDS", "data=photographs.tar") for word in words if not word.startswith("images=")]
    result = run_script("bench_scaled", *words, "images=1", "rounds=1")
    assert result.returncode == 0, result.stderr
    measured = json.loads(Path("scaled.json").read_text())
    assert measured["mosaic"]["mae"]["share_by_factor"].keys() <= {"2", "4"}
    assert measured["enlarged"]["dino"]["psnr_p5"] > 40


def draw(words: list[str]) -> None:
    """As many shards, of fewer and smaller digits."""
    digits = datasets.load_digits()
    some = Bunch(images=digits.images[:700], target=digits.target[:700])
    few = [word for word in words if not word.startswith("repeats=")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda: some)
        assert run_command("shards", *few, "repeats=1", "side=16", "samples_per_shard=30").returncode == 0


def make_again(words: list[str]) -> None:
    """An incident, here of a run whose every step overflows."""
    train(
        ["+experiment=mae_digits", "objective.view.std=[1e-38,1e-38,1e-38]", "data.train=SHARDS", "output_dir=BROKEN"]
    )
    result = run_command("replay", *(word.replace("RUN", "BROKEN") for word in words))
    assert result.returncode == 0, result.stderr
    assert "\nreproduced: " in result.stdout


def submitted(line: str) -> list[str]:
    """What a batch script has srun run. The numbers of jobs, `job=$(sbatch …)`, are given by Slurm and left alone."""
    words = shlex.split(re.sub(r"^\w+=\$\((.*)\)$", r"\1", line))
    place = next(place for place, word in enumerate(words) if word.startswith("slurm/"))
    process, ran = run_batch(Path(words[place]).name, words[place + 1 :], Path.cwd())
    assert process.returncode == 0, f"{line}\n{process.stderr}"
    return ran[next(place for place, word in enumerate(ran) if word in ("python", "pretrain")) :]


def by_torchrun(words: list[str]) -> None:
    own = [word for word in words if word.startswith("--")]
    others = [word for word in words if word not in own and not word.startswith("max_steps=")][2:]
    shutil.rmtree("RUN")
    command = ["-m", "torch.distributed.run", *own, "-m", "pretrain", *others, *small(others), "max_steps=2"]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    assert "all 2 steps are done" in result.stdout


def refuse_nothing(words: list[str]) -> None:
    """A proof that would take minutes is left at its beginning; `tests/test_proof.py` runs one to its end."""
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(proof.Trial, "run", lambda self, name: asked.append(name) or sys.exit("enough"))
        result = run_command("verify-resume", *words)
    assert (asked, result.stderr.strip()) == (["whole"], "enough")


def call(name: str, words: list[str]) -> None:
    """A command of `pretrain`; what takes long is made small, and packing leaves the shards of the test alone."""
    special = {"import": take_in, "verify-resume": refuse_nothing, "scaling": scale, "replay": make_again}
    if name in special:
        special[name](words)
    elif "digits=true" in words:
        draw(words)
    else:
        result = run_command(name, *(word.replace("out=SHARDS", "out=NEW") for word in words))
        assert result.returncode == 0, f"{name} {words}\n{result.stderr}"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.full) if page.name in LONG else page for page in PAGES],
    ids=lambda page: page.name,
)
def test_commands_run_as_written(page: Path, folder: Path) -> None:
    for line in commands(page):
        words = submitted(line) if "sbatch " in line else shlex.split(line)
        if words[:2] == ["pretrain", "probe"] or words[1] in ("scripts/knn.py", "scripts/linear_probe.py"):
            words.append("num_workers=0")  # a reader takes seconds to start, and there is little to read
        if words[:3] == ["python", "-m", "pretrain"] and not {"--cfg", "--multirun"} & set(words):
            train(words[3:])
        elif words[0] == "pretrain":
            call(words[1], words[2:])
        elif words[0] == "python" and words[1] in ("scripts/bench_step.py", "scripts/bench_color.py"):
            bench(Path(words[1]).stem, words[2:])
        elif words[:2] == ["python", "scripts/bench_save.py"]:
            few = [word for word in words[2:] if not word.startswith("rounds=")]
            assert run_script("bench_save", *few, *small(few), "rounds=1").returncode == 0
            assert json.loads(Path("save.json").read_text())["times_shorter"]["median"] > 0
        elif words[:2] == ["python", "scripts/bench_start.py"]:  # without a checkout to compare with, and a run
            assert run_script("bench_start", "rounds=1", words[-1]).returncode == 0
            assert json.loads(Path("start.json").read_text())["commands"]["plan"]["now"]["cpu"]["median"] > 0
        elif words[:2] == ["python", "scripts/flops.py"]:
            count(words[2:])
        elif words[:2] == ["python", "scripts/bench_data.py"]:
            few = [word for word in words[2:] if word.partition("=")[0] not in ("rounds", "batches")]
            result = run_script("bench_data", *few, "rounds=1", "batches=1", "batch=4", "workers=1", "images=8")
            assert result.returncode == 0, result.stderr
            assert json.loads(Path("data.json").read_text()).keys() == {"mae", "dino", "loader", "run"}
        elif words[:2] == ["python", "scripts/order_quality.py"]:
            few = ["samples=4000", "classes=40", "shard=100", "batch=[64]", "streams=[8,2]", "window=[16]"]
            assert run_script("order_quality", *words[2:], *few).returncode == 0
        elif words[:2] == ["python", "scripts/bench_scaled.py"]:
            measure_scales(words[2:])
        elif words[:2] == ["python", "scripts/bench_index.py"]:
            result = run_script("bench_index", "shards=3", "samples=2", "processes=[0]", "rounds=1", words[-1])
            assert result.returncode == 0, result.stderr
        elif words[:2] == ["python", "scripts/bench_source.py"]:
            few = [word for word in words[2:] if word.partition("=")[0] not in ("copies", "latency")]
            result = run_script("bench_source", *few, "copies=1", "latency=0.001", "batch=4", "workers=1")
            assert result.returncode == 0, result.stderr
            found = json.loads(Path("source.json").read_text())
            assert found.keys() == {"local", "as_local", "remote", "first", "second", "run"}
            assert found["remote"]["rate"]["requests"] > found["second"]["rate"]["requests"] == 0
        elif words[0] == "python" and words[1] != "-m":
            result = run_script(Path(words[1]).stem, *words[2:])
            assert result.returncode == 0, f"{line}\n{result.stderr}"
        elif words[0] == "python":
            more = [*small(words), "max_steps=1"] if "--multirun" in words else []
            assert words[2] == "pretrain"
            process = pretrain(*words[3:], *more, cwd=folder)
            assert process.returncode == 0, f"{line}\n{process.stderr}"
        elif words[0] == "torchrun":
            by_torchrun(words[1:])
        elif words[0] in ("docker", "apptainer"):
            assert any((ROOT / word).is_file() for word in words if word.startswith("container/"))
        else:
            assert words[0] in ("make", "pip", ".venv/bin/pre-commit"), line  # set-up: what CI does before the tests
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert words[0] != "make" or words[1] in targets


def snippets(page: Path) -> list[str]:
    """The page's python blocks."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_python_runs_as_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, as in a notebook. What is trained is made small, and the detector's Hiera is an untrained one."""
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    pytest.importorskip("transformers")
    from tests.interop.test_export_hiera import make as make_hiera

    encoder, card = make_hiera("timm", img_size=96, patch_kernel=7, patch_stride=4, patch_padding=3)
    export.write(folder / "HIERA" / "export" / "timm", card, encoder)
    trained: list[list[str]] = []

    def small_train(experiment: str, overrides: list[str]) -> Trained:
        trained.append(overrides)
        return train_here(experiment, [*overrides, *small([f"+experiment={experiment}", *overrides]), "max_steps=2"])

    monkeypatch.setattr(package, "train", small_train, raising=False)
    names: dict[str, object] = {}
    for block in snippets(ROOT / "docs" / "python.md"):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(trained) == 1
    assert names["features"].shape == (12, 48)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_named_files_are_there() -> None:
    """A path in backticks that looks like one of ours exists."""
    for page in PAGES:
        for name in re.findall(r"`((?:pretrain|tests|scripts|conf|docs|slurm|container)/[\w/.-]+)`", page.read_text()):
            if not re.search(r"[A-Z]{2,}", name):
                assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_nothing_names_this_machine_or_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / name for name in listed.stdout.splitlines() if not name.startswith(".ci/")]
    for path in files:
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert "--index-" + "url" not in text, path
        assert "/shared" + "/" not in text, path
