"""Environments in worker processes: equal to those of one process, clear when they fail, gone with their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from cepdiff.errors import SimulationError
from cepdiff.rollout.envs import EnvSpec
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.rollout.vector import LocalEnvs, WorkerEnvs
from cepdiff.types import SUCCESS

EPISODES = [Episode(index, scale) for scale in (0.0, 1.0) for index in range(4)]


class Sparse(gym.Env):
    """Succeeds by its seed; can raise, or end its process."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault=""):
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.time = int(self.np_random.integers(2, 9)), 0
        return self.np_random.standard_normal(2), {}

    def step(self, action):
        self.time += 1
        if self.fault == "raises" and self.time == 2:
            raise RuntimeError("the joint is broken")
        if self.fault == "killed" and self.time == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        reached = self.time == self.length
        return self.np_random.standard_normal(2), 0.0, False, reached, {SUCCESS: reached and self.length % 2 == 0}


@pytest.fixture(autouse=True)
def sparse_env():
    gym.register("test/Sparse-v0", Sparse, disable_env_checker=True)
    yield
    del gym.registry["test/Sparse-v0"]


fork_only = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the test's environment is registered in this process only"
)


@pytest.mark.parametrize("max_envs", [3, 8])
@pytest.mark.parametrize("num_workers", [1, 2, 20])
def test_equals_one_process(max_envs, num_workers, linear_policy):
    policy, spec = linear_policy(4, 1), EnvSpec("InvertedPendulum-v5")
    expected = rollout(policy, spec, EPISODES, seed=3, max_envs=max_envs)
    assert rollout(policy, spec, EPISODES, seed=3, max_envs=max_envs, num_workers=num_workers) == expected
    assert not multiprocessing.active_children()


@fork_only
def test_successes(linear_policy):
    policy, spec = linear_policy(2, 1), EnvSpec("test/Sparse-v0")
    expected = rollout(policy, spec, EPISODES, seed=0)
    assert {result.success for result in expected} == {True, False}
    assert rollout(policy, spec, EPISODES, seed=0, max_envs=4, num_workers=2) == expected


@fork_only
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raises", "fails in step 2 of an episode: RuntimeError: the joint is broken"),
        ("killed", "a worker process of 'test/Sparse-v0' ended (exit code -9)"),
    ],
)
def test_faults(fault, expected, linear_policy):
    spec = EnvSpec("test/Sparse-v0", {"fault": fault})
    with pytest.raises(SimulationError) as error:
        rollout(linear_policy(2, 1), spec, EPISODES, seed=0, num_workers=2)
    assert expected in str(error.value)
    assert not multiprocessing.active_children()


def test_an_environment_that_cannot_be_made():
    with pytest.raises(SimulationError, match="Nonsense"):
        WorkerEnvs(EnvSpec("Nonsense-v0"), 3, 2)
    assert not multiprocessing.active_children()


def test_observations_of_running_environments_are_kept():
    spec = EnvSpec("InvertedPendulum-v5")
    local, workers = LocalEnvs(spec, 3), WorkerEnvs(spec, 3, 2)
    try:
        for envs in (local, workers):
            envs.restart({0: 1, 1: 2, 2: 3})
        moved = [envs.step(np.full((3, 1), 0.5, np.float32)) for envs in (local, workers)]
        again = [envs.restart({1: 9, 2: None}) for envs in (local, workers)]
        np.testing.assert_array_equal(moved[0].observations, moved[1].observations)
        np.testing.assert_array_equal(again[0], again[1])
        np.testing.assert_array_equal(again[0][0], moved[0].observations[0])
        assert not again[0][2].any()
    finally:
        local.close()
        workers.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="reads process tables of Unix")
@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & {*multiprocessing.get_all_start_methods()}))
def test_workers_end_with_a_killed_parent(method, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from cepdiff.rollout.envs import EnvSpec\n"
        "from cepdiff.rollout.vector import WorkerEnvs\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method(sys.argv[1])\n"
        "    envs = WorkerEnvs(EnvSpec('InvertedPendulum-v5'), 4, 2)\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script, method], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # a zombie has ended
    return not status.exists() or status.read_text().rsplit(") ", 1)[-1][0] != "Z"
