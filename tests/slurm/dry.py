"""The batch scripts without a Slurm: what they would run, told by programs that go by Slurm's names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {
    "srun": 'printf "%s\\n" "$@" > srun.words; env > srun.environment; exit ${SRUN_EXITS:-0}',
    "scontrol": """case "$*" in
        *hostnames*) echo n7; echo n8 ;;
        *job*) echo "JobId=41 ${JOB_IS:-JobState=RUNNING PreemptTime=None} Restarts=0" ;;
        *) echo "$@" >> scontrol.words ;;
    esac""",
    "nvidia-smi": "exit 1",
    "pretrain": "exit 1",
    "apptainer": "exit 1",
}
JOB = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "64"}


def run_batch(
    file: str, words: list[str], folder: Path, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs a batch script as its node would.

    Returns:
        What became of it, and all words of its `srun`.
    """
    programs = folder / "slurm-programs"
    programs.mkdir(exist_ok=True)
    for name, script in PROGRAMS.items():
        if not (programs / name).exists():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
    written = folder / "srun.words"
    written.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PRETRAIN", "MASTER"))}
    kept |= {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(folder)} | JOB | environment
    command = ["bash", str(ROOT / "slurm" / file), *words]
    process = subprocess.run(command, env=kept, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    return process, written.read_text().splitlines() if written.exists() else []
