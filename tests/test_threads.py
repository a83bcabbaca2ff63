"""The number of threads: control groups, affinity, SLURM; and how threads wait."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from admg.cli.main import main
from admg.engine import adapt_threads, follow_load, process
from admg.threads import Reading, available_cores, busy_ticks, calm_barriers, quotas, threads_beside

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
    assert environment == {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}
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


STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 5000 700 4 5 6 100 20
cpu1 1 2 3 4 5 6 7 8 0 0
cpu12 1000 0 0 0 0 0 0 0 0 0
intr 12345 0 0
procs_running 3
"""


def test_busy_ticks_of_the_cores_of_this_process():
    assert busy_ticks(STAT, {0}) == 100 + 30 + 4 + 5 + 6  # neither idle nor waiting for a disk, and guests count once
    assert busy_ticks(STAT, {0, 1}, polite=True) == (145 + 20) + (1 + 2 + 3 + 6 + 7 + 8)
    assert busy_ticks(STAT, {1, 2}) == 1 + 3 + 6 + 7 + 8


def test_others_are_what_this_process_did_not_use():
    earlier, later = Reading(10.0, 4, 100.0, 7.0), Reading(12.0, 4, 106.0, 8.0)
    assert earlier.others_until(later) == 2.5  # of 6 s in 2 s, 1 s was ours
    assert earlier.others_until(Reading(12.0, 4, 100.5, 8.0)) == 0  # clocks that disagree


@pytest.mark.parametrize(
    ("others", "cores", "all_cores", "threads"),
    [
        (0.0, 2, 2, 2),
        (0.4, 2, 2, 2),
        (1.0, 2, 2, 1),
        (2.0, 2, 2, 1),
        (3.0, 16, 16, 13),
        (16.0, 16, 16, 4),  # everything is shared: a quarter
        (30.0, 4, 64, 4),  # a quota of 4 cores on a machine with 34 free ones
        (62.0, 4, 64, 2),
        (0.0, 1, 1, 1),
    ],
)
def test_threads_are_as_many_as_free_cores(others, cores, all_cores, threads):
    assert threads_beside(others, cores, all_cores) == threads


def test_the_number_of_threads_follows_the_load(monkeypatch):
    before, clock = torch.get_num_threads(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def step(seconds: float, others: float) -> int:
        """Let time go by in which others use so many cores, and return the number of threads of the next step."""
        clock[0] += seconds
        used[0] += seconds * others
        monkeypatch.setattr(Reading, "now", lambda: Reading(clock[0], 4, used[0], 0.0))
        process.adapt_threads()
        return torch.get_num_threads()

    used = [50.0]
    try:
        torch.set_num_threads(4)
        follow_load(Reading(clock[0], 4, used[0], 0.0))
        assert step(0.1, 3.0) == 4  # too short to tell
        with pytest.warns(
            UserWarning, match=r"^other processes use 2\.7 of 4 cores: each operation is computed by 1 thread while"
        ):
            assert step(0.9, 2.6667) == 1
        assert step(4.0, 0.0) == 1  # the second measurement is longer
        assert step(2.0, 0.0) == 4  # they have gone
        assert step(6.0, 2.0) == 2
        assert step(1000.0, 4.0) == 2  # nothing was computed for long
        assert step(6.0, 0.0) == 4
        follow_load(None)
        assert step(6.0, 4.0) == 4
    finally:
        follow_load(None)
        torch.set_num_threads(before)


def test_without_readings_the_number_stays(monkeypatch, tmp_path):
    assert Reading.now(tmp_path) is None
    follow_load(None)
    before = torch.get_num_threads()
    adapt_threads()
    assert torch.get_num_threads() == before


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux alone has /proc/stat")
def test_a_busy_process_is_seen():
    """What else runs on this machine counts too; together they use at most all cores."""
    earlier = Reading.now()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        time.sleep(1)
        spinning.kill()
    later = Reading.now()
    assert earlier is not None and later is not None and 0.1 < earlier.others_until(later) < earlier.cores + 0.2


def test_commands_follow_the_load_unless_a_number_is_chosen(monkeypatch):
    chosen = []
    monkeypatch.setattr("admg.engine.follow_load", lambda since: chosen.append(since is not None))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        assert main(["models"]) == 0
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert main(["models", "--threads", str(before)]) == 0
        assert main(["models"]) == 0
    finally:
        torch.set_num_threads(before)
    assert chosen == [False, False, Path("/proc/stat").exists()]
