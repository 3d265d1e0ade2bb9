"""Buffers that a reader process fills with batches and the trainer's process gives back when it is done with them.

New shared memory for each batch costs the kernel a page fault for every 4 kB of it, on both sides: a tenth of the work
on an image. Here a fixed number of slots goes round. The trainer's tensors lie in a slot's own memory, and the slot is
free again when the last of them, slices included, is gone: nothing can be overwritten that somebody still holds. A
reader that finds no free slot takes new memory for that batch.

The memory belongs to an unnamed file: nothing is left behind by a process that is killed, and the size of /dev/shm,
which containers keep small, is no limit to it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.records import Batch, Replaced
from pretrain.view.spec import ViewSpec

_ALIGNMENT = 64  # bytes, of each tensor in a slot
_RINGS: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()  # of this process, by name
_NAMES = itertools.count()


def empty_views(specs: Sequence[ViewSpec], count: int, memory: Any = None, offset: int = 0) -> tuple[Tensor, ...]:
    """Room for views, [V, B, C, h, w] each, laid out as [V, B, h, w, C] so that a crop is written in one piece.

    Args:
        specs: the views.
        count: samples B.
        memory: a buffer whose bytes from `offset` on they are to be; None takes new memory.
    """
    views = []
    for spec in specs:
        shape = (spec.count, count, *spec.height_width, spec.channels)
        if memory is None:
            view = torch.empty(shape, dtype=spec.dtype)
        else:
            view = torch.frombuffer(memory, dtype=spec.dtype, count=math.prod(shape), offset=offset).view(shape)
            offset += _aligned(view.nbytes)
        views.append(view.permute(0, 1, 4, 2, 3))
    return tuple(views)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass
class Parcel:
    """A batch on its way from the reader: in a slot, or with its views beside it where no slot was free."""

    ring: int  # its name in the process that made it
    slot: int | None
    views: tuple[Tensor, ...]
    g: np.ndarray
    labels: np.ndarray
    draws: np.ndarray | None
    keys: list[str]
    seed: int
    replaced: list[Replaced]

    def batch(self) -> Batch:
        """To be called once, in the trainer's process."""
        views = self.views if self.slot is None else _RINGS[self.ring].lease(self.slot, len(self.g))
        draws = None if self.draws is None else torch.from_numpy(self.draws)
        g, labels = torch.from_numpy(self.g), torch.from_numpy(self.labels)
        return Batch(views, g, labels, self.keys, self.seed, self.replaced, draws)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; its slot is free at once (torch's DataLoader calls this)."""
        return self.batch().pin_memory()


class Ring:
    """Slots for batches, shared by the process that made it and one that is spawned with it.

    Args:
        slots: how many.
        specs: the views of every sample.
        batch: samples that a slot has room for.
    """

    def __init__(self, slots: int, specs: Sequence[ViewSpec], batch: int) -> None:
        self.name = next(_NAMES)
        self.slots, self.specs = slots, tuple(specs)
        values = [spec.count * batch * spec.channels * math.prod(spec.height_width) for spec in specs]
        sizes = [number * spec.dtype.itemsize for number, spec in zip(values, specs, strict=True)]
        self.slot_size = sum(_aligned(size) for size in sizes)
        flags = slots  # before the slots themselves, a byte for each: 1 if taken
        self._first = -(-flags // mmap.PAGESIZE) * mmap.PAGESIZE
        self._file = os.memfd_create("pretrain-batches") if hasattr(os, "memfd_create") else _unnamed_file()
        weakref.finalize(self, os.close, self._file)  # what is mapped stays mapped for those who hold it
        os.ftruncate(self._file, self._start(slots))
        self._map = mmap.mmap(self._file, 0)
        _RINGS[self.name] = self

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "_map"}
        return kept | {"_file": DupFd(self._file)}  # which goes to the process that is being spawned

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = state["_file"].detach()
        weakref.finalize(self, os.close, self._file)
        self._map = mmap.mmap(self._file, 0)

    def views(self, count: int) -> tuple[Tensor, ...]:
        """In the reader: views to fill, in a free slot if there is one."""
        for slot in range(self.slots):
            if not self._map[slot]:
                self._map[slot] = 1
                return empty_views(self.specs, count, self._map, self._start(slot))
        return empty_views(self.specs, count)

    def pack(self, batch: Batch) -> Parcel:
        """In the reader: a batch whose views came from `views`, ready to be sent."""
        start = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()
        slot, rest = divmod(batch.views[0].data_ptr() - start - self._first, self.slot_size)
        inside = not rest and 0 <= slot < self.slots
        draws = None if batch.draws is None else batch.draws.numpy()
        return Parcel(
            ring=self.name,
            slot=slot if inside else None,
            views=() if inside else batch.views,
            g=batch.g.numpy(),
            labels=batch.labels.numpy(),
            draws=draws,
            keys=batch.keys,
            seed=batch.seed,
            replaced=batch.replaced,
        )

    def lease(self, slot: int, count: int) -> tuple[Tensor, ...]:
        """In the trainer: the views in a slot, which is free again when no tensor of them is left."""
        memory = (ctypes.c_uint8 * self.slot_size).from_buffer(self._map, self._start(slot))
        weakref.finalize(memory, self._free, slot).atexit = False
        return empty_views(self.specs, count, memory)

    def _free(self, slot: int) -> None:
        self._map[slot] = 0

    def _start(self, slot: int) -> int:
        return self._first + slot * self.slot_size


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
