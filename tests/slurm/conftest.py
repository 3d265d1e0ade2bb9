"""A Slurm for the tests of a session; they are skipped unless PRETRAIN_TEST_SLURM=1."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if os.environ.get("PRETRAIN_TEST_SLURM") != "1":
        pytest.skip(
            "PRETRAIN_TEST_SLURM is not 1: the tests on a real Slurm, which they start, need root and its packages"
        )
    assert not missing(), f"{', '.join(missing())}: not installed; see tests/slurm/cluster.py"
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:  # a short path: there are sockets in it
        cluster = Cluster(Path(folder))
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """Idle nodes; what a test left there is ended."""
    yield running_cluster
    running_cluster.call("scancel", "--user=root")
    running_cluster.up()
