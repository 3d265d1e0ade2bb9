"""What a command imports before it does its work: seconds differ between machines, imports do not."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.config.problem import UserError
from pretrain.launch import collector
from tests.job import SMALL, Job
from tests.scripts import loaded

HEAVY = ["lightning", "scipy", "sklearn", "matplotlib", "wandb", "transformers", "torchmetrics", "pandas"]
COMPILER = ["torch._dynamo", "torch._inductor"]
SHARDED = ["torch.distributed.tensor", "torch.distributed.fsdp"]


COMMAND = "from pretrain.cli.main import main\nmain()"


def imported(program: str, *words: str, cwd: Path) -> set[str]:
    """The modules that a program leaves imported in a process of its own, when it ended well."""
    told = (
        f"import atexit, json, sys\natexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n{program}"
    )
    command = [sys.executable, "-c", told, *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_showing_a_configuration_imports_no_torch(tmp_path: Path) -> None:
    shows = "import runpy\nrunpy.run_module('pretrain', run_name='__main__', alter_sys=True)"
    modules = imported(shows, "+experiment=mae_vitl", "--cfg", "job", cwd=tmp_path)
    assert "hydra" in modules
    assert not modules & {"torch", "numpy", *HEAVY}


@pytest.mark.parametrize("experiment", ["mae_vitl", "dino_vits16", "mae_hiera_base"])
def test_a_plan_imports_neither_lightning_nor_the_compiler(experiment: str, tmp_path: Path) -> None:
    modules = imported(COMMAND, "plan", f"+experiment={experiment}", cwd=tmp_path)
    assert "torch" in modules
    assert not modules & {*HEAVY, *COMPILER, *SHARDED}


CHECK = """
import sys
from pretrain.config.check import mistakes
lines = [line for line in mistakes(sys.argv[1:]) if not line.startswith("data.train=")]  # no shards are there
assert lines == [], lines
"""


def test_to_check_a_command_imports_nothing_that_only_a_run_needs(tmp_path: Path) -> None:
    words = [word for word in SMALL if word != "callbacks.pictures=null"]
    modules = imported(CHECK, *words, "data.train=x.tar", cwd=tmp_path)
    assert not modules & {*HEAVY, *COMPILER, *SHARDED}
    assert {"pretrain.trainer.lifecycle", "pretrain.trainer.parallel", "pretrain.callbacks.pictures"} <= modules


def test_lightning_is_imported_where_a_configuration_names_a_class_of_it(tmp_path: Path) -> None:
    name = "lightning.pytorch.callbacks.Timer"
    words = [f"+callbacks.mine._target_={name}", "+callbacks.mine._partial_=true"]
    assert "lightning" in imported(CHECK, *SMALL, "data.train=x.tar", *words, cwd=tmp_path)


STARTS = """
import runpy
import pretrain.launch.local as local
local.start = lambda count, words: 0 if count == 2 else 1
runpy.run_module("pretrain", run_name="__main__", alter_sys=True)
"""


def test_who_only_starts_ranks_imports_no_lightning(job: Job) -> None:
    modules = imported(STARTS, *job.overrides("trainer=ddp", "accelerator=cpu", "devices=2"), cwd=job.tmp)
    assert not modules & {*HEAVY, *COMPILER, *SHARDED}


def test_the_collector_rests_until_all_is_imported() -> None:
    assert gc.isenabled()
    with collector.resting():
        assert not gc.isenabled()
    assert gc.isenabled()
    with collector.resting():
        collector.wake()
        assert gc.isenabled()
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        kept = [[number] for number in range(1000)]  # of a run of a sweep
        collector.wake()
        assert (gc.get_freeze_count(), len(kept)) == (frozen, 1000)
    finally:
        gc.unfreeze()


def test_the_benchmark_compares_round_by_round() -> None:
    bench = loaded("bench_start")
    taken, compared = bench["Taken"], bench["compared"]
    rounds = {"now": [taken(1.0, 2.0), taken(4.0, 4.0)], "before": [taken(2.0, 2.0), taken(4.0, 8.0)]}
    ratio = compared(rounds)["ratio"]
    assert ratio["cpu"] == {"median": 0.75, "least": 0.5, "most": 1.0}
    assert ratio["wall"] == {"median": 0.75, "least": 0.5, "most": 1.0}


def test_the_benchmark_waits_for_a_command_and_says_what_failed(tmp_path: Path) -> None:
    bench = loaded("bench_start")
    assert bench["run"](tmp_path, ["-c", "sum(range(3_000_000))"]).cpu > 0
    with pytest.raises(UserError, match=r"ended with 3:\nno luck"):
        bench["run"](tmp_path, ["-c", "import sys; print('no luck', flush=True); sys.exit(3)"])
