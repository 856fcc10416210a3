"""Environments side by side that reset only on request: in this process, or shared out over worker processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, NoReturn, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.errors import SimulationError
from cepdiff.rollout.envs import Env, EnvSpec, box_spaces, make_vector_env
from cepdiff.types import SUCCESS

_PATIENCE = 5.0  # seconds for a worker to finish its step before it is terminated


class Transition(NamedTuple):
    """What a step of N environments returns; `success` (N,) is None in environments without it."""

    observations: NDArray[Any]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.bool_] | None


class VectorEnv(Protocol):
    """N environments; all raise SimulationError if one of them cannot be made, reset or stepped."""

    num_envs: int
    action_space: Box

    def restart(self, seeds: Mapping[int, int | None]) -> NDArray[Any]:
        """Reset the environments named by their index; one with the seed None retires. Return all observations."""

    def step(self, actions: NDArray[Any]) -> Transition:
        """Step all environments that have not retired; actions (N, A)."""

    def close(self) -> None:
        """Release the environments."""


def make_vector(spec: EnvSpec, num_envs: int, num_workers: int = 0) -> LocalEnvs | WorkerEnvs:
    """`num_envs` environments, stepped by `num_workers` processes or, with 0, by this one; the numbers are the same."""
    return WorkerEnvs(spec, num_envs, min(num_workers, num_envs)) if num_workers else LocalEnvs(spec, num_envs)


class _Retired(gym.Wrapper[Any, Any, Any, Any]):
    """An environment with no episode left: it is still stepped, but simulates nothing."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._nothing = np.zeros_like(env.observation_space.sample())

    def reset(self, **_: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        return self._nothing, {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        return self._nothing, 0.0, False, False, {}


class LocalEnvs:
    """A `VectorEnv` in this process; `vector` is Gymnasium's."""

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.vector = make_vector_env(spec, num_envs)
        self.num_envs = num_envs
        self._observations: NDArray[Any] = np.empty(0)
        try:
            _, self.action_space = box_spaces(self.vector.envs[0])
        except SimulationError:
            self.vector.close()
            raise

    def restart(self, seeds: Mapping[int, int | None]) -> NDArray[Any]:
        for index, seed in seeds.items():
            if seed is None:
                self.vector.envs[index] = _Retired(self.vector.envs[index])
        if seeds:
            order = range(self.num_envs)
            mask = np.array([index in seeds for index in order])
            self._observations, _ = self.vector.reset(seed=[*map(seeds.get, order)], options={"reset_mask": mask})
        return self._observations

    def step(self, actions: NDArray[Any]) -> Transition:
        self._observations, rewards, terminated, truncated, info = self.vector.step(actions)
        return Transition(self._observations, rewards, terminated, truncated, info.get(SUCCESS))

    def close(self) -> None:
        self.vector.close()


class WorkerEnvs:
    """A `VectorEnv` whose environments are shared out over processes; they end with this one, however it ends."""

    def __init__(self, spec: EnvSpec, num_envs: int, num_workers: int) -> None:
        self.num_envs = num_envs
        self._spec = spec
        sizes = [len(part) for part in np.array_split(np.arange(num_envs), num_workers)]
        self._bounds = np.cumsum([0, *sizes]).tolist()
        self._workers: list[tuple[Any, Connection]] = []
        context = multiprocessing.get_context()
        try:
            for size in sizes:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, spec, size), daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
            self.action_space: Box
            self.action_space, *_ = map(self._receive, range(num_workers))
        except BaseException:
            self.close()
            raise

    def restart(self, seeds: Mapping[int, int | None]) -> NDArray[Any]:
        parts = [
            {index - first: seed for index, seed in seeds.items() if first <= index < last}
            for first, last in zip(self._bounds, self._bounds[1:], strict=False)
        ]
        return np.concatenate(self._ask("restart", parts))

    def step(self, actions: NDArray[Any]) -> Transition:
        found: list[Transition] = self._ask("step", np.split(actions, self._bounds[1:-1]))
        *columns, success = zip(*found, strict=True)
        observations, rewards, terminated, truncated = (np.concatenate(column) for column in columns)
        known = None
        if any(part is not None for part in success):  # a worker whose environments have all retired has none
            parts = [np.zeros(len(own.rewards), np.bool_) if own.success is None else own.success for own in found]
            known = np.concatenate(parts)
        return Transition(observations, rewards, terminated, truncated, known)

    def close(self) -> None:
        for process, connection in self._workers:
            try:
                connection.send(None)
            except OSError:
                process.terminate()
        for process, connection in self._workers:
            process.join(_PATIENCE)
            if process.is_alive():
                process.terminate()
                process.join()
            connection.close()
        self._workers.clear()

    def _ask(self, method: str, arguments: list[Any]) -> list[Any]:
        for worker, argument in enumerate(arguments):
            try:
                self._workers[worker][1].send((method, argument))
            except OSError:
                self._lost(worker)
        return [self._receive(worker) for worker in range(len(arguments))]

    def _receive(self, worker: int) -> Any:
        try:
            answer = self._workers[worker][1].recv()
        except (EOFError, OSError):
            self._lost(worker)
        if isinstance(answer, str):
            raise SimulationError(answer)
        return answer

    def _lost(self, worker: int) -> NoReturn:
        process = self._workers[worker][0]
        process.join(_PATIENCE)
        raise SimulationError(
            f"a worker process of '{self._spec.env_id}' ended (exit code {process.exitcode}); if memory ran out, take "
            "fewer environments (max_envs), or num_workers 0"
        ) from None


def _serve(connection: Connection, spec: EnvSpec, num_envs: int) -> None:
    """Own `num_envs` environments and obey messages (method, argument), until None comes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        envs = LocalEnvs(spec, num_envs)
        connection.send(envs.action_space)
        while connection in wait([connection, parent.sentinel]) and (message := connection.recv()) is not None:
            method, argument = message
            connection.send(getattr(envs, method)(argument))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # environments raise any type; `CheckedEnv` has put the place into the message
        connection.send(str(error) or type(error).__name__)
