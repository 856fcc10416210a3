import gymnasium as gym
import numpy as np
import pytest
import torch


class LinearPolicy:
    """Computes each row independently, so results are equal bit by bit whatever the batch."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        self.action_size = self.noise_size = action_size
        self.batch_sizes: list[int] = []
        numbers = torch.Generator().manual_seed(0)
        self.weights = 0.3 * torch.randn(observation_size, action_size, generator=numbers)

    def act(self, observations, *, guidance_scale, noise):
        assert observations.dtype == torch.float32
        assert len(observations) == len(guidance_scale) == len(noise)
        self.batch_sizes.append(len(observations))
        rows = zip(observations, guidance_scale, noise, strict=True)
        return torch.stack([torch.tanh(o @ self.weights + 0.2 * n) * (1 + s) for o, s, n in rows])


class CountingEnv(gym.Env):
    """Observes the step within an episode; the seed determines the episode's length. Counts all simulated steps."""

    steps = 0
    resets: list[int] = []  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        CountingEnv.resets.append(seed)
        self.length = int(self.np_random.integers(2, 30))
        self.time = 0
        return np.array([0.0, self.length]), {}

    def step(self, action):
        CountingEnv.steps += 1
        self.time += 1
        assert self.time <= self.length, "stepped beyond the end of an episode"
        ended = self.time == self.length
        return (
            np.array([self.time, self.length], float),
            float(action[0]),
            ended and self.length % 2 == 0,
            ended,
            {},
        )


@pytest.fixture
def counting_env():
    CountingEnv.steps = 0
    CountingEnv.resets = []
    gym.register("test/Counting-v0", CountingEnv, disable_env_checker=True, order_enforce=False)
    yield CountingEnv
    del gym.registry["test/Counting-v0"]


@pytest.fixture
def linear_policy():
    return LinearPolicy
