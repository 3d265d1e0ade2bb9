"""The console command: its commands, its help, and what is said of a wrong one."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pretrain import __version__
from pretrain.cli.command import module
from pretrain.cli.main import COMMANDS
from pretrain.config.arguments import parse
from tests.scripts import FOLDER, run_command, run_script

PACKAGE = Path(__file__).parents[2] / "pretrain"
GROUPS = {"main", "command", "train", "probe", "shards", "probe_data", "outcome", "words"}  # no words of their own
MODULES = sorted({path.stem for path in (PACKAGE / "cli").glob("[a-z]*.py")} - GROUPS)
# How each module with words of its own is typed, and in scripts/ called.
TYPED = {
    "doctor": ["shards", "action=verify"],
    "make_shards": ["shards", "images=x"],
    "make_digits": ["shards", "digits=true"],
    "knn": ["probe", "knn"],
    "linear_probe": ["probe", "linear"],
}
TYPED |= {name: [command] for command, name in COMMANDS.items() if name not in GROUPS}
SCRIPTS = {path.stem for path in FOLDER.glob("*.py")} - {"baselines"}  # which bench_data.py imports
HEAVY = ["torch", "lightning", "sklearn", "wandb", "hydra", "omegaconf", "numpy", "scipy", "PIL", "matplotlib", "timm"]


def test_the_help_lists_every_command_with_what_it_does() -> None:
    nothing, help_ = run_command(), run_command("--help")
    assert (nothing.returncode, help_.returncode) == (2, 0)
    assert nothing.stdout == help_.stdout == run_command("-h").stdout
    for name, module_name in COMMANDS.items():
        summary = (module(module_name).__doc__ or "").split("\n")[0]
        assert f"  {name} ".ljust(17) + summary in help_.stdout.splitlines()


def test_every_module_is_a_command() -> None:
    assert sorted(TYPED) == MODULES
    for name in MODULES:
        found = module(name)
        assert callable(found.main)
        assert "pretrain " in found.__doc__


def test_what_is_no_command_is_said() -> None:
    wrong = run_command("verify_resume", "steps=3")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "`verify_resume`: there is no such command; did you mean verify-resume?" in wrong.stderr
    assert "did you mean pretrain train +experiment=x?" in run_command("+experiment=x").stderr
    assert "did you mean knn?" in run_command("probe", "kn", "checkpoint=x").stderr
    assert run_command("--version").stdout == f"pretrain {__version__}\n"


@pytest.mark.parametrize("name", MODULES)
def test_every_word_is_described_and_its_example_is_one(name: str) -> None:
    schema = module(name).Arguments
    for one in fields(schema):
        said = one.metadata
        assert said["help"].endswith("."), one.name
        assert said["example"], one.name
    examples = [f"{one.name}={one.metadata['example']}" for one in fields(schema)]
    values = parse(schema, examples)
    defaults = [one.name for one in fields(schema) if getattr(values, one.name) == one.default]
    assert set(defaults) <= {"digits"}  # an example shows another value than the default


@pytest.mark.parametrize("name", MODULES)
def test_the_help_of_a_command_says_all_of_it(name: str) -> None:
    result = run_command(*TYPED[name], "--help")
    assert result.returncode == 0
    found, lines = module(name), result.stdout.splitlines()
    assert lines[0] == (found.__doc__ or "").splitlines()[0]
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("    pretrain ") for line in lines)  # how it is used
    told = " ".join(result.stdout.split())
    for one in fields(found.Arguments):
        assert any(line.startswith(f"  {one.name} ") for line in lines)
        assert " ".join(one.metadata["help"].split()) in told
    assert told.count("example: ") == len(fields(found.Arguments))


@pytest.mark.parametrize("group", ["probe", "shards"])
def test_the_help_of_several_forms_is_that_of_each(group: str) -> None:
    nothing, help_ = run_command(group), run_command(group, "--help")
    assert (nothing.returncode, help_.returncode) == (2, 0)
    assert nothing.stdout == help_.stdout
    forms = [name for name, typed in TYPED.items() if typed[0] == group]
    assert len(forms) > 1
    for name in forms:
        assert run_command(*TYPED[name], "--help").stdout.strip() in help_.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probe", "knn", "weights=student"], "weights=student: it is called features=student now"),
        (["probe", "linear", "weights=pixels"], "weights=pixels: it is called features=pixels now"),
        (["probe", "linear", "protocol=paper"], "protocol=paper: it is called solver=sgd now"),
        (["probe", "linear", "solver=closed"], "solver=closed: it is called solver=logreg now"),
        (["export", "weights=student"], "weights=student: it is called network=student now"),
        (["scaling", "+experiment=mae_vitl", "nodes=4"], "nodes=4: it is called num_nodes=4 now"),
        (["scaling", "+experiment=mae_vitl", "gather=float32"], "gather=float32: it is called param_dtype=float32 now"),
    ],
)
def test_an_old_word_is_refused_with_the_present_one(words: list[str], sentence: str) -> None:
    result = run_command(*words)
    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_script_says_what_it_wants(name: str) -> None:
    nothing, help_ = run_script(name), run_script(name, "--help")
    assert (nothing.returncode, help_.returncode) == (2, 0)
    assert nothing.stdout == help_.stdout
    thin = name in MODULES or name == "shards"
    assert ("    pretrain " if thin else f"python scripts/{name}.py") in help_.stdout  # an example
    assert "Arguments:" in help_.stdout
    wrong = run_script(name, "nonsense=1", "word")
    assert wrong.returncode == 1
    assert "nonsense=1: there is no such key" in wrong.stderr
    assert "`word` is not understood" in wrong.stderr
    assert "Traceback" not in wrong.stderr


# Asks for every help, and says after each what has been imported.
IMPORTED = """
import contextlib, io, json, runpy, sys
helps, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for words in helps:
    sys.argv = ["pretrain", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_module("pretrain" if words == ["-m"] else "pretrain.cli.main", run_name="__main__")
    assert said.getvalue()
    found[" ".join(words)] = [name for name in heavy if name in sys.modules]
print(json.dumps(found))
"""


def test_no_help_imports_a_heavy_library() -> None:
    helps = [[], ["-m"], *([name] for name in COMMANDS), *TYPED.values()]
    command = [sys.executable, "-W", "ignore", "-c", IMPORTED, json.dumps(helps), json.dumps(HEAVY)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert len(found) >= 2 + len(COMMANDS)
    assert not any(found.values()), found


def test_messages_name_commands_that_an_installed_package_has() -> None:
    """No string of the package names a file of the checkout."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "scripts/" not in node.value, path
                assert "slurm/" not in node.value or path.name == "slurm.py", path
