"""Writes scikit-learn's handwritten digits as shards of 32×32 images: small, real data that needs no download.

python scripts/make_digits.py out=runs/demo-data
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from pretrain.arguments import script
from pretrain.data.write import write_shards


@dataclass(frozen=True)
class Arguments:
    out: str
    val_samples: int = 297
    samples_per_shard: int = 250
    seed: int = 0


def main(arguments: Arguments) -> None:
    out, digits = Path(arguments.out), load_digits()

    def load(number: int) -> dict[str, bytes]:
        grey = (digits.images[number] * (255 / 16)).round().astype("uint8")  # 8×8, 17 shades
        file = io.BytesIO()
        Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(file, "PNG")
        return {"png": file.getvalue(), "cls": str(digits.target[number]).encode()}

    numbers = list(range(len(digits.images)))
    random.Random(arguments.seed).shuffle(numbers)
    parts = {"val": numbers[: arguments.val_samples], "train": numbers[arguments.val_samples :]}
    for name, part in parts.items():
        if list(out.glob(f"{name}-*.tar")) and not (out / f".{name}.writing").exists():
            print(f"{out}/{name}-*.tar are already there")
            continue
        keys = [(f"{number:08d}", number) for number in part]
        write_shards(out, name, keys, load, arguments.samples_per_shard, [str(digit) for digit in range(10)])


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)
