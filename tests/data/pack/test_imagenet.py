"""ImageNet in every form in which people have it becomes the same shards."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from scipy.io import savemat

from pretrain.config.problem import UserError
from pretrain.data.pack import imagenet
from pretrain.data.pack.gather import Picture
from tests.data.shards import image_bytes
from tests.scripts import run_script

# Sorted they are 0, 1, 2; the official ids have another order, and begin at 1. The fourth has classes below it.
IDS = {"n02119789": 1, "n01440764": 2, "n07745940": 3, "n00001740": 4}
CLASSES = sorted(IDS)[1:]
TRAIN = {f"{synset}_{number}": 100 * row + number for row, synset in enumerate(CLASSES) for number in (3, 17, 205)}
VAL = {f"ILSVRC2012_val_{number:08d}": 1000 + number for number in range(1, 6)}
TRUTH = ["n07745940", "n01440764", "n01440764", "n02119789", "n07745940"]  # in the order of the names


def image(number: int) -> bytes:
    return image_bytes(number, kind="JPEG")


def tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def of_class(synset: str) -> list[tuple[str, bytes]]:
    return [(f"{stem}.JPEG", image(number)) for stem, number in TRAIN.items() if stem.startswith(synset)]


def train_archive(root: Path) -> None:
    members = [(f"{synset}.tar", tar(of_class(synset))) for synset in reversed(CLASSES)]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(members))


def train_tars(root: Path) -> None:
    (root / "train").mkdir()
    for synset in CLASSES:
        (root / "train" / f"{synset}.tar").write_bytes(tar(of_class(synset)))


def train_folders(root: Path, folder: str = "train") -> None:
    for synset in CLASSES:
        (root / folder / synset).mkdir(parents=True)
        for name, content in of_class(synset):
            (root / folder / synset / name).write_bytes(content)


def val_archive(root: Path) -> None:
    members = [(f"{stem}.JPEG", image(number)) for stem, number in reversed(VAL.items())]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar(members))


def val_flat(root: Path, folder: str = "val") -> None:
    (root / folder).mkdir(parents=True)
    for stem, number in VAL.items():
        (root / folder / f"{stem}.JPEG").write_bytes(image(number))


def val_folders(root: Path) -> None:
    for (stem, number), synset in zip(VAL.items(), TRUTH, strict=True):
        (root / "val" / synset).mkdir(parents=True, exist_ok=True)
        (root / "val" / synset / f"{stem}.JPEG").write_bytes(image(number))


def meta() -> bytes:
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
    ]
    rows = [(float(number), synset, "words", "gloss", float(number == 4)) for synset, number in IDS.items()]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=kinds)})
    return file.getvalue()


def ids() -> bytes:
    return "".join(f"{IDS[synset]}\n" for synset in TRUTH).encode()


def devkit_archive(root: Path) -> None:
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, content in {"meta.mat": meta(), "ILSVRC2012_validation_ground_truth.txt": ids()}.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def devkit_folder(root: Path) -> None:
    (root / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    (root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(meta())
    (root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt").write_bytes(ids())


def devkit_files(root: Path) -> None:
    (root / "meta.mat").write_bytes(meta())
    (root / "ILSVRC2012_validation_ground_truth.txt").write_bytes(ids())


def ids_with_a_table(root: Path) -> None:
    (root / "map_clsloc.txt").write_text("".join(f"{synset} {number} kit_fox\n" for synset, number in IDS.items()))
    (root / "ILSVRC2012_validation_ground_truth.txt").write_bytes(ids())


def synsets(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{synset}\n" for synset in TRUTH))


def named_numbers(root: Path) -> None:
    rows = [f"{stem}.JPEG {CLASSES.index(synset)}\n" for stem, synset in zip(VAL, TRUTH, strict=True)]
    (root / "val.txt").write_text("".join(reversed(rows)))


def solution(root: Path) -> None:
    rows = [f"{stem},{synset} 1 2 3 4 {synset} 5 6 7 8\n" for stem, synset in zip(VAL, TRUTH, strict=True)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


def kaggle(root: Path) -> None:
    train_folders(root, "ILSVRC/Data/CLS-LOC/train")
    val_flat(root, "ILSVRC/Data/CLS-LOC/val")
    (root / "ILSVRC" / "ImageSets").mkdir()
    solution(root)


def content(out: Path) -> dict[str, set[tuple[str, bytes, bytes]]]:
    """(key, image, label) of all samples of each set, as the webdataset library reads them."""
    found: dict[str, set[tuple[str, bytes, bytes]]] = {}
    for name in ("train", "val"):
        paths = sorted(str(path) for path in out.glob(f"{name}-*.tar"))
        samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)) if paths else []
        found[name] = {(one["__key__"], one["jpeg"], one["cls"]) for one in samples}
        assert len(found[name]) == len(samples)
    return found


EXPECTED = {
    "train": {(stem, image(number), str(CLASSES.index(stem[:9])).encode()) for stem, number in TRAIN.items()},
    "val": {
        (stem, image(number), str(CLASSES.index(synset)).encode())
        for (stem, number), synset in zip(VAL.items(), TRUTH, strict=True)
    },
}

Part = Callable[[Path], None]


@pytest.mark.parametrize(
    "parts",
    [
        (train_archive, val_archive, devkit_archive),
        (train_archive, val_flat, devkit_folder),
        (train_tars, val_archive, devkit_files),
        (train_tars, val_flat, ids_with_a_table),
        (train_folders, val_archive, synsets),
        (train_folders, val_flat, named_numbers),
        (train_archive, val_flat, solution),
        (train_folders, val_folders),
        (kaggle,),
    ],
    ids=lambda parts: "+".join(part.__name__ for part in parts),
)
def test_every_layout_becomes_the_same_shards(tmp_path: Path, parts: tuple[Part, ...]) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    for part in parts:
        part(root)
    before = sorted(root.rglob("*"))
    result = run_script("make_shards", f"imagenet={root}", f"out={out}", "samples_per_shard=4")
    assert result.returncode == 0, result.stderr
    assert content(out) == EXPECTED
    assert json.loads((out / "classes.json").read_text()) == CLASSES
    assert sorted(root.rglob("*")) == before
    rows = json.loads((out / "index.json").read_text())["shards"]
    assert [(row["name"], row["count"]) for row in rows] == [
        ("train-000000.tar", 4),
        ("train-000001.tar", 4),
        ("train-000002.tar", 1),
        ("val-000000.tar", 4),
        ("val-000001.tar", 1),
    ]
    again = run_script("make_shards", f"imagenet={root}", f"out={out}", "samples_per_shard=4")
    assert "already holds 5 shards" in again.stderr


def test_parts_may_lie_anywhere(tmp_path: Path) -> None:
    for folder, part in {"a": train_archive, "b": val_archive, "c": devkit_files}.items():
        (tmp_path / folder).mkdir()
        part(tmp_path / folder)
    words = [f"images={tmp_path}/a/ILSVRC2012_img_train.tar", f"val={tmp_path}/b/ILSVRC2012_img_val.tar"]
    labels = f"val_labels={tmp_path}/c/ILSVRC2012_validation_ground_truth.txt"
    result = run_script("make_shards", *words, labels, f"out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "out") == EXPECTED


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path: Path) -> None:
    for layout in (train_archive, train_folders):
        root = tmp_path / layout.__name__
        root.mkdir()
        layout(root)
        val_folders(root)
        for seed in (0, 1):
            out = f"out={root}/out{seed}"
            assert run_script("make_shards", f"imagenet={root}", out, f"seed={seed}").returncode == 0
    shards = {path: path.read_bytes() for path in tmp_path.glob("*/out*/train-000000.tar")}
    assert len(shards) == 4
    assert len(set(shards.values())) == 4  # an archive lists its classes in its own order


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path: Path) -> None:
    inner = tar([("../../../evil_1.JPEG", image(1)), ("/tmp/evil_2.JPEG", image(2)), ("..", b"")])
    (tmp_path / "t.tar").write_bytes(
        tar([("../n01440764.tar", inner), ("/etc/n02119789.tar", tar([("a/b.JPEG", image(3))]))])
    )
    before = sorted(tmp_path.parent.rglob("*"))
    result = run_script("make_shards", f"images={tmp_path / 't.tar'}", f"out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert content(tmp_path / "out")["train"] == {
        ("evil_1", image(1), b"0"),
        ("evil_2", image(2), b"0"),
        ("b", image(3), b"1"),
    }
    new = set(tmp_path.parent.rglob("*")) - set(before)
    assert all(path.is_relative_to(tmp_path / "out") for path in new)


def change(path: str, edit: Callable[[bytes], bytes]) -> Part:
    def part(root: Path) -> None:
        (root / path).write_bytes(edit((root / path).read_bytes()))

    return part


def without(path: str) -> Part:
    return lambda root: (root / path).unlink()


TXT = "imagenet_2012_validation_synset_labels.txt"
IDS_TXT = "ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("labels", "edit", "message"),
    [
        (synsets, change(TXT, lambda text: text[10:]), "it has 4 labels for 5 images"),
        (synsets, change(TXT, lambda text: text + b"n01440764\n"), "it has 6 labels for 5 images"),
        (synsets, change(TXT, lambda text: b"n99999999\n" + text[10:]), "`n99999999` are classes without a training"),
        (synsets, change(TXT, lambda text: b""), "neither a class a line, nor a file and its class"),
        (synsets, change(TXT, lambda text: b"\xff\xfe" + text), "cannot be read"),
        (synsets, without(TXT), "which classes its images are of cannot be told: give val_labels=…"),
        (devkit_files, change(IDS_TXT, lambda text: text[2:]), "it has 4 labels for 5 images"),
        (devkit_files, change(IDS_TXT, lambda text: b"4\n" + text[2:]), "`4` are ids of no class"),
        (devkit_files, without("meta.mat"), "give the development kit itself"),
        (devkit_files, change("meta.mat", lambda content: content[:90]), "meta.mat cannot be read"),
        (solution, change("LOC_val_solution.csv", lambda text: text.replace(b"00000002", b"00000009")), "no label for"),
        (solution, change("LOC_val_solution.csv", lambda text: text.replace(b"n0", b"x0")), "are classes without"),
        (named_numbers, change("val.txt", lambda text: text.replace(b" 2", b" 3")), "there is no class 3, for 3 are"),
        (named_numbers, change("val.txt", lambda text: text[30:]), "it has no label for `ILSVRC2012_val_0"),
        (
            named_numbers,
            change("val.txt", lambda text: b"".join(b"ILSVRC2012_val_%08d %d\n" % (n, n) for n in range(1, 6))),
            "it numbers the images and says nothing of classes",
        ),
        (devkit_archive, change("ILSVRC2012_devkit_t12.tar.gz", lambda content: content[:200]), "cannot be read"),
    ],
)
def test_wrong_labels_are_refused_before_anything_is_written(
    tmp_path: Path, labels: Part, edit: Part, message: str
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    for part in (train_folders, val_flat, labels, edit):
        part(root)
    result = run_script("make_shards", f"imagenet={root}", f"out={out}")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_other_mistakes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    train_archive(root)
    val_archive(root)
    synsets(root)
    train, val = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
    cut, packed = tmp_path / "cut.tar", tmp_path / "packed.tar"
    cut.write_bytes(train.read_bytes()[:5000])
    packed.write_bytes(b"\x1f\x8b\x08" + bytes(600))
    (root / "bad.tar").write_bytes(tar([("n01440764.tar", tar(of_class("n01440764"))[:3000])]))
    (tmp_path / "empty").mkdir()
    shutil.copytree(root, tmp_path / "half")
    (tmp_path / "half" / val.name).unlink()
    for words, message in [
        ([f"imagenet={tmp_path / 'empty'}"], "the train images are not there, as one of ILSVRC2012_img_train.tar"),
        ([f"imagenet={tmp_path / 'half'}"], "the val images are not there"),
        ([f"imagenet={root}", f"images={train}"], "not both"),
        ([f"images={train}", f"val={val}"], "give val_labels=…"),
        ([f"images={train}", "val_labels=x"], "is for val=…, which is missing"),
        ([f"images={train}", f"val={val}", "val_labels=x"], "val_labels=x: there is no such file"),
        ([f"images={train}", f"val={val}", f"val_labels={root / TXT}", "name=val"], "is the name of the second set"),
        ([f"images={cut}"], "is no whole tar"),
        ([f"images={packed}"], "is compressed"),
        ([f"images={root / 'bad.tar'}"], "in the tar for `n01440764`"),
    ]:
        result = run_script("make_shards", *words, f"out={out}")
        assert (result.returncode, message in result.stderr) == (1, True), (words, result.stderr)
        assert "Traceback" not in result.stderr
        assert not out.exists()


def test_stopped_in_the_second_set_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    for part in (train_archive, val_archive, synsets):
        part(root)
    words = [f"imagenet={root}", f"out={out}", "samples_per_shard=4"]
    read = Picture.read

    def fails(self: Picture) -> bytes:
        if self.stem == "ILSVRC2012_val_00000004":
            raise OSError("gone")
        return read(self)

    monkeypatch.setattr(Picture, "read", fails)
    assert "gone" in run_script("make_shards", *words).stderr
    monkeypatch.undo()
    train = {path: path.stat().st_mtime_ns for path in out.glob("train-*.tar")}
    assert len(train) == 3
    assert len(list(out.glob("val-*.tar"))) < 2
    assert not (out / "index.json").exists()
    assert run_script("make_shards", *words, "seed=1").returncode == 1  # another call is no continuation
    result = run_script("make_shards", *words)
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("train-*.tar")} == train
    assert content(out) == EXPECTED
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\na,n01 1 2 3 4\na,n01 5 6 7 8\na,n02 1 2 3 4\n"),
        ("val.txt", "a.JPEG n01\na.JPEG n02\n"),
    ],
)
def test_labels_that_contradict_one_another_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="says that `a` is n01, and that it is n02"):
        imagenet.labelled([Picture("x", 0, 1, "a.JPEG", None)], tmp_path / name, ["n01", "n02"])
