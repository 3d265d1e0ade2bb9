"""What a class says of itself and of its constructor's arguments, read from its source without importing it.

To import an encoder takes seconds, since torch comes with it, and runs code of whatever a configuration names. Here
source files are only parsed. Names of libraries stand for themselves: `Tensor` is described as Tensor.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union

_BASICS: dict[str, Any] = {one.__name__: one for one in (int, float, str, bool, dict, list, tuple)}
_BASICS |= {"Any": Any, "Sequence": Sequence, "Callable": Callable, "Literal": Literal, "Union": Union}
_DEPTH = 8  # imports that are followed from one file to the next


@dataclass(frozen=True)
class Declared:
    """A class: the first sentence of its docstring, and the type hint of each argument of its constructor."""

    summary: str
    hints: dict[str, Any]


@lru_cache(maxsize=64)
def declared(dotted: str) -> Declared | None:
    """The class of a dotted name, None where it cannot be found or read."""
    module, _, name = dotted.rpartition(".")
    home, node = _definition(module, name) or (module, None)
    if not isinstance(node, ast.ClassDef):
        return None
    docstring = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return Declared(docstring, {name: _hint(one, home) for name, one in _annotations(home, node).items()})


@lru_cache(maxsize=256)
def _source(module: str) -> ast.Module | None:
    root, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(root) if root else None  # of a package at the top: nothing is imported
    except ValueError:
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if inner:
        path = path.parent.joinpath(*inner)
        path = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8")) if path.suffix == ".py" and path.is_file() else None


def _definition(module: str, name: str, depth: int = _DEPTH) -> tuple[str, ast.AST] | None:
    """(the module where a name is defined, its class or the expression that it is assigned)."""
    tree = _source(module)
    if tree is None or not depth:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return module, node.value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return (module, node.value) if node.value else None
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name, depth - 1)
    return None


def _annotations(module: str, node: ast.ClassDef) -> dict[str, ast.expr]:
    """The annotations of the constructor's arguments: of `__init__`, or of a dataclass's fields."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            arguments = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]
            return {argument.arg: argument.annotation for argument in arguments if argument.annotation}
    fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    if node.decorator_list:
        return {one.target.id: one.annotation for one in fields if isinstance(one.target, ast.Name)}
    for base in node.bases:  # the constructor is inherited
        found = _definition(module, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            return _annotations(found[0], found[1])
    return {}


def _hint(node: ast.AST, module: str) -> Any:
    """The type hint that an annotation stands for."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _hint(ast.parse(node.value, mode="eval").body, module)
        return type(None) if node.value is None else node.value
    if isinstance(node, ast.BinOp):
        return Union[_hint(node.left, module), _hint(node.right, module)]  # noqa: UP007 (values, not a written hint)
    if isinstance(node, ast.Subscript):
        return _subscript(node, module)
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name in _BASICS:
        return _BASICS[name]
    found = _definition(module, name) if isinstance(node, ast.Name) else None
    if found is not None and not isinstance(found[1], ast.ClassDef) and found[0].partition(".")[0] != "torch":
        return _hint(found[1], found[0])
    return type(name, (), {})


def _subscript(node: ast.Subscript, module: str) -> Any:
    base = _hint(node.value, module)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if base is Literal:
        return Literal[tuple(one.value for one in inner if isinstance(one, ast.Constant))]
    if base is Callable:
        return Callable
    return base[tuple(_hint(one, module) for one in inner)] if base in (dict, list, tuple, Sequence, Union) else base
