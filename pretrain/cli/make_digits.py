"""Writes scikit-learn's handwritten digits as shards: real data that needs no download.

    pretrain shards digits=true out=runs/demo-data

With scenes=true each digit gives `repeats` scenes, where it stands several times, anywhere and
in random colours: pixels no longer tell digits apart.
"""

from __future__ import annotations

import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.config.arguments import word
from pretrain.config.problem import UserError
from pretrain.files import replace_file


@dataclass(frozen=True)
class Arguments:
    out: str = word("A folder for the shards.", example="runs/demo-data")
    digits: bool = word("Asks for digits, where `pretrain shards` could do something else.", True, example="true")
    val_samples: int = word("How many digits are kept for val.", 297, example="100")
    samples_per_shard: int = word("How many samples a shard holds.", 250, example="100")
    seed: int = word("Of the shuffle, and of what is drawn.", 0, example="1")
    scenes: bool = word("Whether each digit is drawn into scenes.", False, example="true")
    repeats: int = word("With scenes=true: how many scenes there are of each digit.", 4, example="6")
    side: int = word("The side of an image, in pixels.", 32, example="64")


def main(arguments: Arguments) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from pretrain.data.pack.digits import scene
    from pretrain.data.pack.write import write_sets

    a, out, digits = arguments, Path(arguments.out), load_digits()
    if not a.digits:
        raise UserError(
            "digits=false: leave the word out, and say what else is wanted: images=…, imagenet=… or action=…"
        )
    if a.repeats < 1 or a.side < 8:
        raise UserError(f"repeats={a.repeats} must be at least 1, and side={a.side} at least 8 pixels")

    def plain(number: int) -> Image.Image:
        grey = (digits.images[number] * (255 / 16)).round().astype("uint8")  # 8×8, 17 shades
        return Image.fromarray(grey).resize((a.side, a.side), Image.Resampling.BICUBIC).convert("RGB")

    def drawn(number: int, repeat: int) -> Image.Image:
        return Image.fromarray(scene(digits.images[number], np.random.default_rng([a.seed, number, repeat]), a.side))

    def load(sample: tuple[int, int, int]) -> dict[str, bytes]:
        number, repeat, _ = sample
        image = drawn(number, repeat) if a.scenes else plain(number)
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"png": file.getvalue(), "cls": str(digits.target[number]).encode()}

    _refuse_others(out, arguments)
    numbers = list(range(len(digits.images)))
    random.Random(a.seed).shuffle(numbers)
    parts = {"val": numbers[: a.val_samples], "train": numbers[a.val_samples :]}
    for name, part in parts.items():
        if list(out.glob(f"{name}-*.tar")) and not (out / f".{name}.writing").exists():
            print(f"{out}/{name}-*.tar are already there")
            continue
        samples = [(number, repeat, a.side) for repeat in range(a.repeats if a.scenes else 1) for number in part]
        keys = [(f"{number:08d}" + f"-{repeat}" * a.scenes, (number, repeat, side)) for number, repeat, side in samples]
        write_sets(out, {name: keys}, load, a.samples_per_shard, [str(digit) for digit in range(10)])


def _refuse_others(out: Path, arguments: Arguments) -> None:
    """Leaves a folder alone whose digits were drawn with other arguments; else says there what these are."""
    note, settings = (
        out / "digits.json",
        {name: value for name, value in asdict(arguments).items() if name not in ("out", "digits")},
    )
    if note.exists():
        there = json.loads(note.read_text())
        others = [f"{name}={there.get(name)}" for name, value in settings.items() if there.get(name) != value]
    else:
        others = ["arguments that are not known"] if list(out.glob("*.tar")) else []
    if others:
        raise UserError(
            f"out={out} holds digits that were made with {', '.join(others)}. Give another folder, or delete that one"
        )
    out.mkdir(parents=True, exist_ok=True)
    replace_file(note, json.dumps(settings, indent=1).encode())
