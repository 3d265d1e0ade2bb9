"""No file of this project calls what would run what it reads, read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted([*(ROOT / "pretrain").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])

NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads", "marshal.load", "shelve.open",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load",
    "torch.package.PackageImporter",
    "torch.ops.load_library", "torch.classes.load_library", "torch.serialization.add_safe_globals", "joblib.load",
    "read_array", "pickle.load", "pickle.loads", "pickle.Unpickler", "pd.read_pickle",
}  # fmt: skip
MODULES = {"cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.distributed.checkpoint"}
EXCEPT = {
    ("scripts/bench_index.py", "pickle.loads"),  # of what it pickled itself, to time it
    ("pretrain/data/store/command.py", "shell=True"),  # `pipe:`, which source.expand refuses unless it is allowed
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a call's function, as far as it is written so."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
            yield from sorted(names & (MODULES | NEVER | {"torch.load", "numpy.load"}))
        elif isinstance(node, ast.Call):
            name, words = dotted(node.func), {word.arg: word.value for word in node.keywords}
            if name in NEVER or name.endswith(".read_array") or name.startswith("torch.distributed.checkpoint."):
                yield name
            if name == "torch.load" and not _is(words.get("weights_only"), True):
                yield "torch.load without weights_only=True"
            if name in ("np.load", "numpy.load") and "allow_pickle" in words and not _is(words["allow_pickle"], False):
                yield "allow_pickle"
            yield from (f"{word}=True" for word in ("shell", "trust_remote_code") if _is(words.get(word), True))


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert [one for one in offences(path.read_text()) if (name, one) not in EXCEPT] == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=w)", "pickle.loads(b)",
        "np.load(p, allow_pickle=True)", "yaml.load(t)", "eval(t)", "subprocess.run(c, shell=True)", "import dill",
        "from pickle import loads", "from torch import load", "import torch.distributed.checkpoint",
        "from torch.distributed import checkpoint", "A.from_pretrained(f, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds_them(source: str) -> None:
    assert list(offences(source))
