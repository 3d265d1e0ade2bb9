"""What an attacker would plant: objects that make a file when they are unpickled, in every wrapping."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Plant:
    """Unpickling it makes a file, where an attack would start a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickled(marker: Path) -> bytes:
    """A bare pickle."""
    return pickle.dumps(Plant(marker))


def saved(marker: Path) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save({"state_dict": Plant(marker)}, file)
    return file.getvalue()


def array(marker: Path) -> bytes:
    """A .npy of objects."""
    objects, file = np.empty((8, 8, 3), object), io.BytesIO()
    objects[:] = Plant(marker)
    np.save(file, objects, allow_pickle=True)
    return file.getvalue()


def arrays(marker: Path) -> bytes:
    """A .npz of objects."""
    objects, file = np.empty(1, object), io.BytesIO()
    objects[0] = Plant(marker)
    np.savez(file, a=objects)
    return file.getvalue()


def explodes(marker: Path) -> bool:
    """Whether the plants work at all: a test that finds no marker must not owe that to a dud."""
    for content in (pickled(marker), saved(marker), array(marker), arrays(marker)):
        if content[:1] == b"\x80":
            pickle.loads(content)
        elif content[:6] == b"\x93NUMPY":
            np.load(io.BytesIO(content), allow_pickle=True)
        elif b"a.npy" in content:
            np.load(io.BytesIO(content), allow_pickle=True)["a"]
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        if not marker.exists():
            return False
        marker.unlink()
    return True
