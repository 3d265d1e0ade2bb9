"""Makes the runs of version 0.1 that later versions must go on with: `v0_1/` beside this file.

    python tests/compatibility/make_runs.py VERSION_0_1_CHECKOUT OUT [--check CHECKOUT]

VERSION_0_1_CHECKOUT holds commit a8de2ec. In OUT it writes, of an MAE and of a DINO:

    NAME/           the folder of a run that stopped at half its length
    NAME_export/    its encoder, for timm
    words.json      the words that started each run, and go on with it
    expected.json   what version 0.1 makes of these folders: the losses to the end, two probes, a few features

`--check` has another version do the same on this machine, and compares to the last bit: its words are `words.renamed`.
The shards are not kept: `digits.py` makes the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digits import write_digits
from words import renamed

_STOP = 6  # steps, of
_STEPS = 12

_BOTH = [
    "trainer=cpu",
    "trainer.precision=32-true",
    "encoder.img_size=16",
    "global_batch_size=8",
    "batch_size_per_device=4",
    "epochs=100",
    "warmup_epochs=10",
    f"max_steps={_STEPS}",
    "checkpoint.keep_last=1",
    "data.train=shards/train-*.tar",
    "data.val=shards/val-*.tar",
    "data.index_dir=index",
    "data.num_samples=null",
    "data.num_workers=0",
    "data.val_samples=16",
    "data.shuffle.streams=3",
    "data.shuffle.window=4",
    "callback.log.every_steps=1",
    "callback.log.wandb=disabled",
    "callback.evaluate.every_steps=4",
    "callback.online_knn.every_steps=4",
    "callback.pictures=null",
]

RUNS = {
    "mae": [
        "+experiment=mae_digits",
        *_BOTH,
        "output_dir=mae",
        "trainer.recompute=true",
        "trainer.gather=float32",
        "encoder.embed_dim=16",
        "encoder.num_heads=2",
        "encoder.depth=1",
        "objective.norm_pix=true",
        "objective.decoder.embed_dim=12",
        "objective.decoder.depth=1",
        "base_lr=1e-1",
        "callback.ledger.enabled=true",
    ],
    "dino": [
        "+experiment=dino_digits",
        *_BOTH,
        "output_dir=dino",
        "nodes=1",
        "devices=1",
        "encoder.embed_dim=8",
        "encoder.drop_path=0.2",
        "objective.head.prototypes=16",
        "objective.head.hidden_dim=16",
        "objective.head.bottleneck_dim=8",
        "base_lr=1e-1",
        "callback.health.every_steps=4",
    ],
}

PROBES = {"knn": ["k=5"], "linear_probe": ["protocol=closed"]}
PROBED = ["train=shards/train-*.tar", "val=shards/val-*.tar", "index_dir=index", "num_workers=0"]

_FEATURES = """
import sys
from pathlib import Path
from pretrain.data.opening import open_shards
from pretrain.frozen import load

features, _ = load(Path(sys.argv[1])).features(open_shards("shards/val-*.tar", "index"), num_workers=0)
print([[float(f"{value:.9g}") for value in row[:4]] for row in features[:2].tolist()])
"""


@dataclass(frozen=True)
class Version:
    """The programs of a checkout; all that they are told of are names in the folder where they are started.

    Args:
        checkout: of the version.
        translate: what words of version 0.1 are in it.
    """

    checkout: Path
    translate: Callable[[Sequence[str]], list[str]] = list

    def train(self, folder: Path, *words: str) -> None:
        self._python(folder, "-m", "pretrain", *self.translate(words))

    def script(self, folder: Path, name: str, *words: str) -> None:
        self._python(folder, str(self.checkout / "scripts" / f"{name}.py"), *self.translate(words))

    def features(self, folder: Path, export: str) -> list[list[float]]:
        """The first features of the first validation samples."""
        found: list[list[float]] = json.loads(self._python(folder, "-c", _FEATURES, export).splitlines()[-1])
        return found

    def _python(self, folder: Path, *words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{self.checkout}: {' '.join(words)}\n{done.stdout}exit code {done.returncode}")
        return done.stdout


def main(version: Path, out: Path, other: Path | None) -> int:
    """Makes the fixture; the exit code says whether another version goes on from it to the same bits."""
    old = Version(version.resolve())
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in RUNS:
        make(old, out, name)
    expected = {name: measured(old, out, name) for name in RUNS}
    write(out / "words.json", RUNS)
    write(out / "expected.json", expected)
    refuse_paths(out, [old.checkout, Path(tempfile.gettempdir())])
    if other is None:
        return 0
    new = Version(other.resolve(), renamed)
    found = {name: measured(new, out, name) for name in RUNS}
    lines = [
        f"{name} {what}: {expected[name][what]} by {version}, {found[name][what]} by {other}"
        for name in RUNS
        for what in expected[name]
        if found[name][what] != expected[name][what]
    ]
    print("\n".join(lines) or f"{other} goes on from the runs of {version} to the same bits")
    return int(bool(lines))


def make(version: Version, out: Path, name: str) -> None:
    """A run that stops on its way, and the export of its encoder."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_digits(place / "shards")
        version.train(place, *RUNS[name], f"stop_after_steps={_STOP}")
        version.script(place, "export", f"checkpoint={name}", "format=timm", f"out={name}_export")
        (place / name / ".lock").unlink()  # names this machine
        # Nothing reads this link, and where links are followed, in an sdist say, its checkpoint would be there twice.
        (place / name / "checkpoints" / "latest").unlink()
        for one in (name, f"{name}_export"):
            shutil.copytree(place / one, out / one)


def measured(version: Version, out: Path, name: str) -> dict[str, Any]:
    """What a version makes of a run and its export: both probed, and the run gone on with to its end."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_digits(place / "shards")
        for one in (name, f"{name}_export"):
            shutil.copytree(out / one, place / one)
        result: dict[str, Any] = {}
        for probe, words in PROBES.items():
            result[probe] = accuracy(version, place, probe, f"checkpoint={name}", *words)
            result[f"{probe} of the export"] = accuracy(version, place, probe, f"checkpoint={name}_export", *words)
        result["features"] = version.features(place, f"{name}_export")
        version.train(place, *RUNS[name])
        rows = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, _STEPS + 1))
        for key in ("loss", "val_loss"):
            numbers = {row["step"]: row[key] for row in rows[_STOP:] if key in row}
            result[key] = {str(step): {"value": number, "hex": number.hex()} for step, number in numbers.items()}
        return result


def accuracy(version: Version, place: Path, probe: str, *words: str) -> float:
    version.script(place, probe, *words, *PROBED, "out=result.json")
    return float(json.loads((place / "result.json").read_text())["accuracy"])


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def refuse_paths(out: Path, paths: Sequence[Path]) -> None:
    """Fails if a file says where it was made."""
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for path in paths:
            assert os.fsencode(path) not in content, f"{file} names {path}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", type=Path, metavar="VERSION_0_1_CHECKOUT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--check", type=Path, metavar="CHECKOUT")
    arguments = parser.parse_args()
    sys.exit(main(arguments.version, arguments.out, arguments.check))
