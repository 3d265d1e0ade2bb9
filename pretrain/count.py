"""Counts the operations of a network on the meta device by torch's own formulas, as torch's `FlopCounterMode` does.

That one calls the kernels of every block anew, though blocks are alike, and imports torch's compiler, which takes
longer than all the rest of a plan.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

_COMPILER = "torch._dynamo"


def operations(forward: Callable[[], Tensor]) -> int:
    """Counts the operations of matrix products and convolutions, forward and backward, two a multiply-add."""
    with _without_compiler(), _Counter() as counter:
        forward().sum().backward()
    return counter.total


class _Counter(TorchDispatchMode):
    """Adds up the operations of what runs inside.

    What was called before, on meta tensors of the same shapes, costs the same and gives tensors of the same shapes: it
    is not called again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._known: dict[Any, tuple[int, Any]] = {}  # operation and what it is given → its count, what it returns

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, so there is nothing to be skipped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        words = kwargs or {}
        call = (func, _described(args), _described(tuple(words.items())))
        if call in self._known:
            count, output = self._known[call]
            self.total += count
            return tree_map_only(Tensor, _another, output)
        with self:  # what consists of other operations is counted by them
            output = func.decompose(*args, **words)
        if output is not NotImplemented:
            return output
        output, formula = func(*args, **words), flop_registry.get(func.overloadpacket)
        count = int(formula(*args, **words, out_val=output)) if formula else 0
        self.total += count
        if not (func.is_view or func._schema.is_mutable) and _on_meta((args, words, output)):
            self._known[call] = count, tree_map_only(Tensor, _another, output)
        return output


def _described(value: Any) -> Any:
    """What an operation is given, to be looked up: shapes in place of tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value


def _another(tensor: Tensor) -> Tensor:
    """A new tensor of the same shape on the meta device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _on_meta(value: Any) -> bool:
    """Whether all tensors in it are on the meta device, and so have no values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_on_meta, value))
    return not isinstance(value, Tensor) or value.is_meta


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Inside, torch's kernels for the meta device do without the compiler.

    Each of them, when it is first called, asks `torch._dynamo.disable` for a version of itself that is never compiled.
    Where nobody has imported the compiler, nothing is compiled, and the kernel is that version. Whatever else is asked
    for is answered by the compiler itself.
    """
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = sys.modules[_COMPILER] = _StandIn(_COMPILER)
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


class _StandIn(ModuleType):
    """In the compiler's place until it is asked for something else than `disable`."""

    def disable(self, kernel: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        return kernel

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(importlib.import_module(_COMPILER), name)
