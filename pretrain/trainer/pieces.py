"""The content of a checkpoint as files: what is whole in one, what is sharded in one a rank; any world reads them.

`state.pt` is a tree of dictionaries and lists whose leaves are tensors, numbers and strings; where a tensor is sharded
stands `{"sharded": its shape}`, and every `shard_00000_of_00004.pt` has rows of it: {path of the leaf: {"start": first
row, "rows": tensor}}. All are read through torch's loader of tensors and plain data alone, memory-mapped, and a rank
reads only the rows that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.trainer.shard import local, rows_of, writes
from pretrain.trainer.trust import read_state

_SHARDED = "sharded"

Tree = Any  # dictionaries and lists, nested, of tensors, numbers and strings


@dataclass
class Pieces:
    """A sharded tensor on disk: its shape, and the rows in each file, `start` → rows."""

    shape: list[int]
    parts: dict[int, Tensor] = field(default_factory=dict)

    def rows(self, wanted: range) -> Tensor:
        """Some of its rows, in order.

        Raises:
            ValueError: some are missing.
        """
        found = []
        for start, part in sorted(self.parts.items()):
            first, last = max(wanted.start, start), min(wanted.stop, start + len(part))
            if first < last:
                found.append(part[first - start : last - start])
        if sum(map(len, found)) != len(wanted):
            raise ValueError(
                f"rows {wanted.start} to {wanted.stop} of a tensor of shape {self.shape} are not all there"
            )
        return torch.cat(found) if found else next(iter(self.parts.values()))[:0]

    def whole(self) -> Tensor:
        return self.rows(range(self.shape[0]))


def taken(tree: Tree, leads: bool, copies: dict[str, Tensor] | None = None) -> tuple[Tree, dict[str, Any]]:
    """What this rank writes of a tree: (the content of `state.pt`, of rank 0 alone; that of its own file).

    Args:
        tree: the state; all ranks have the same one, with sharded tensors in it.
        leads: whether this is rank 0.
        copies: given if the state goes on changing before all is written: where tensors are copied to, by path. Those
            of the last time are written over, since new memory costs more than the copy.
    """
    from torch.distributed.tensor import DTensor

    pieces: dict[str, Any] = {}

    def leaf(path: str, value: Any) -> Any:
        if isinstance(value, DTensor):
            if writes(value):
                pieces[path] = {"start": rows_of(value).start, "rows": _on_host(path, local(value), copies)}
            return {_SHARDED: list(value.shape)}
        if isinstance(value, Tensor):
            return _on_host(path, value, copies) if leads else None
        return value

    whole = _mapped(tree, leaf)
    if copies and torch.cuda.is_initialized():
        torch.cuda.synchronize()  # until the last copy is there
    return whole, pieces


def read(folder: Path, names: list[str]) -> Tree:
    """The tree in a checkpoint's files: tensors on the CPU, memory-mapped, and `Pieces` where they are sharded.

    Raises:
        ValueError: a file of shards does not fit the rest.
    """
    tree = read_state(folder / "state.pt")
    files = [read_state(folder / name) for name in sorted(names) if name.startswith("shard_")]

    def found(path: str, value: Any) -> Any:
        if not _is_sharded(value):
            return value
        parts = {one[path]["start"]: one[path]["rows"] for one in files if path in one}
        return Pieces(value[_SHARDED], parts)

    return _mapped(tree, found, _is_sharded)


def assembled(tree: Tree) -> Tree:
    """The same tree with whole tensors."""
    return _mapped(tree, lambda _, value: value.whole() if isinstance(value, Pieces) else value)


def like(stored: Tensor | Pieces, target: Tensor) -> Tensor:
    """What a rank keeps of a stored tensor that is to be `target`: as it is sharded, on its device."""
    from torch.distributed.tensor import DTensor

    if not isinstance(target, DTensor):
        whole = stored.whole() if isinstance(stored, Pieces) else stored
        return whole.to(target.device)
    wanted = rows_of(target)
    rows = stored.rows(wanted) if isinstance(stored, Pieces) else stored[wanted.start : wanted.stop]
    return DTensor.from_local(
        rows.to(local(target).device).clone(),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )


def write(path: Path, state: Tree) -> None:
    """Writes a file of tensors, numbers, strings, and lists and dictionaries of them, and flushes it to disk.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as failure:  # what torch makes of a full disk
            raise OSError(f"cannot write `{path}`: {failure}") from failure
        os.fsync(file.fileno())


def size_of(tree: Tree) -> int:
    """Bytes of all tensors."""
    total = 0

    def leaf(_: str, value: Any) -> Any:
        nonlocal total
        total += value.nbytes if isinstance(value, Tensor) else 0
        return value

    _mapped(tree, leaf)
    return total


def _on_host(path: str, tensor: Tensor, copies: dict[str, Tensor] | None) -> Tensor:
    tensor = tensor.detach()
    if copies is None:
        return tensor.cpu()
    copy = copies.get(path)
    if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
        copy = copies[path] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    copy.copy_(tensor, non_blocking=True)
    return copy


def _is_sharded(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {_SHARDED}


def _mapped(
    tree: Tree, leaf: Callable[[str, Any], Any], ends: Callable[[Any], bool] = lambda _: False, path: str = ""
) -> Tree:
    """The tree with other values at its leaves, or where `ends` says there is one: `leaf` is given path and value."""
    if isinstance(tree, Mapping) and not ends(tree):
        return {key: _mapped(value, leaf, ends, f"{path}/{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple) and not ends(tree):
        return type(tree)(_mapped(value, leaf, ends, f"{path}/{number}") for number, value in enumerate(tree))
    return leaf(path, tree)
