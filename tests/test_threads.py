"""The number of threads: control groups, affinity, SLURM; and how threads wait."""

import os
from pathlib import Path

import pytest
import torch

from admg.cli.main import main
from admg.threads import available_cores, calm_barriers, quotas

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write the files of /proc and /sys that tell a process its control groups and their quotas."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_quota_of_version_2_counts_at_every_level(tmp_path):
    files = {"cpu.max": "max 100000", "pod/cpu.max": "150000 100000", "pod/box/cpu.max": "400000 50000"}
    root = machine(tmp_path, "0::/pod/box\n", {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert list(quotas(root)) == [1.5, 8.0]
    assert available_cores({}, root) == 1  # 1.5 rounded down: a second thread would be stopped half of the time


def test_a_quota_of_version_1_is_read_and_minus_one_is_none(tmp_path):
    base = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{base}/cpu.cfs_quota_us": "-1", f"{base}/cpu.cfs_period_us": "100000"}
    files |= {f"{base}/docker/x/cpu.cfs_quota_us": "50000", f"{base}/docker/x/cpu.cfs_period_us": "100000"}
    root = machine(tmp_path, "11:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n", files)
    assert list(quotas(root)) == [0.5]
    assert available_cores({}, root) == 1  # half a core still has one thread


def test_a_group_outside_of_the_namespace_is_the_mount_itself(tmp_path):
    root = machine(tmp_path, "0::/../../elsewhere\n", {"sys/fs/cgroup/cpu.max": "100000 100000"})
    assert list(quotas(root)) == [1.0]


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert list(quotas(tmp_path)) == []
    root = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense"})
    assert list(quotas(root)) == [] and available_cores({}, root) == CORES


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "1"}, 1),
        ({"SLURM_CPUS_PER_TASK": "10000"}, CORES),
        ({"LOCAL_WORLD_SIZE": str(CORES)}, 1),
        ({"SLURM_NTASKS_PER_NODE": str(10 * CORES)}, 1),
        ({"SLURM_CPUS_PER_TASK": "many"}, CORES),
    ],
)
def test_a_batch_system_and_a_launcher_limit_the_cores(environment, cores, tmp_path):
    assert available_cores(environment, tmp_path) == cores


def test_affinity_limits_the_cores(tmp_path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores({}, tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_what_the_user_set_about_waiting_is_kept():
    environment: dict[str, str] = {}
    calm_barriers(environment)
    assert environment == {"GOMP_SPINCOUNT": "200", "KMP_BLOCKTIME": "0"}
    for name, value in {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "9"}.items():
        environment = {name: value}
        calm_barriers(environment)
        assert environment[name] == value
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    calm_barriers(environment)
    assert environment == {"OMP_WAIT_POLICY": "ACTIVE"}


def test_threads_of_a_command(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        assert main(["models", "--threads", "3"]) == 0
        assert torch.get_num_threads() == 3
        assert main(["models"]) == 0
        assert torch.get_num_threads() == 3  # OMP_NUM_THREADS decides, which torch has read: nothing is changed
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert main(["models"]) == 0
        assert torch.get_num_threads() == min(3, available_cores())
    finally:
        torch.set_num_threads(before)
    capsys.readouterr()
    for bad in ("0", "-1", "2000"):
        assert main(["models", "--threads", bad]) == 2
        assert (
            capsys.readouterr().err
            == f"admg models: error: --threads must be at least 1 and at most 1,024, got {bad}\n"
        )
