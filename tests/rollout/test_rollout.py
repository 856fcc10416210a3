"""Exactly the requested episodes, each as if it ran alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from cepdiff.errors import DivergenceError, SimulationError
from cepdiff.randomness import generator
from cepdiff.rollout.envs import EnvSpec, reset_seed
from cepdiff.rollout.rollout import Episode, EpisodeResult, rollout, shard

SCALES = (0.0, 1.0, 3.0)


def sequential(policy, env_id, episode, seed):
    """The plain Gymnasium loop."""
    env = gym.make(gym.spec(env_id))
    noise = generator(seed, "rollout-noise", episode.index)
    observation, _ = env.reset(seed=reset_seed(seed, "rollout", episode.index))
    total, length, terminated, truncated = 0.0, 0, False, False
    while not (terminated or truncated):
        inputs = torch.as_tensor(observation, dtype=torch.float32)[None]
        scale = torch.tensor([episode.guidance_scale])
        action = policy.act(inputs, guidance_scale=scale, noise=torch.randn(1, policy.noise_size, generator=noise))
        action = np.clip(action[0].numpy(), env.action_space.low, env.action_space.high)
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        length += 1
    env.close()
    return EpisodeResult(episode.index, episode.guidance_scale, total, length, terminated)


@pytest.mark.parametrize(("env_id", "sizes"), [("Hopper-v4", (11, 3)), ("InvertedPendulum-v5", (4, 1))])
@pytest.mark.parametrize("max_envs", [1, 4, 100])
def test_equals_sequential_episodes(env_id, sizes, max_envs, linear_policy):
    policy = linear_policy(*sizes)
    episodes = [Episode(index, scale) for scale in SCALES for index in range(4)]
    expected = [sequential(policy, env_id, episode, seed=5) for episode in episodes]
    assert len({result.length for result in expected}) > 2  # episodes end at different steps
    assert rollout(policy, EnvSpec(env_id), episodes, seed=5, max_envs=max_envs) == expected


def test_shards_together_equal_the_whole(linear_policy):
    policy, spec = linear_policy(4, 1), EnvSpec("InvertedPendulum-v5")
    episodes = [Episode(index, scale) for scale in SCALES for index in range(3)]
    whole = rollout(policy, spec, episodes, seed=0)
    parts = [rollout(policy, spec, shard(episodes, rank, 2), seed=0) for rank in range(2)]
    assert [len(part) for part in parts] == [5, 4]
    assert whole[0::2] == parts[0]
    assert whole[1::2] == parts[1]
    assert rollout(policy, spec, episodes[::-1], seed=0) == whole[::-1]


def test_running_episodes_count_by_their_share_of_the_time_limit(linear_policy):
    progress = []
    spec = EnvSpec("Swimmer-v4", {"max_episode_steps": 4})  # never terminates
    episodes = [Episode(index, 0.0) for index in range(3)]
    rollout(linear_policy(8, 2), spec, episodes, seed=0, max_envs=2, on_progress=lambda *done: progress.append(done))
    assert progress == [(done, 3) for done in (0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)]


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_shards_partition(world):
    shards = [shard(range(10), rank, world) for rank in range(world)]
    assert sorted(index for part in shards for index in part) == list(range(10))


def test_nothing_is_simulated_beyond_the_episodes(counting_env, linear_policy):
    policy = linear_policy(2, 1)
    episodes = [Episode(index, scale) for scale in SCALES for index in range(7)]
    progress = []
    results = rollout(
        policy,
        EnvSpec("test/Counting-v0"),
        episodes,
        seed=0,
        max_envs=5,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    total = sum(result.length for result in results)
    assert [(r.index, r.guidance_scale) for r in results] == [(e.index, e.guidance_scale) for e in episodes]
    assert counting_env.steps == total
    assert sum(policy.batch_sizes) == total
    assert sorted(counting_env.resets) == sorted(3 * [reset_seed(0, "rollout", index) for index in range(7)])
    assert all(result.terminated == (result.length % 2 == 0) for result in results)
    assert progress[-1] == (21, 21)


def test_every_scale_sees_the_same_starts_and_noise(counting_env):
    class Noise:
        action_size = noise_size = 1

        def act(self, observations, *, guidance_scale, noise):
            return 0.1 * noise

    episodes = [Episode(index, scale) for scale in SCALES for index in (3, 8)]
    results = rollout(Noise(), EnvSpec("test/Counting-v0"), episodes, seed=0)
    returns = {scale: [r.episode_return for r in results if r.guidance_scale == scale] for scale in SCALES}
    assert returns[0.0] == returns[1.0] == returns[3.0]
    assert returns[0.0][0] != returns[0.0][1]
    other_seed = rollout(Noise(), EnvSpec("test/Counting-v0"), episodes, seed=1)
    assert other_seed[0].episode_return != results[0].episode_return


def test_a_policy_may_take_more_noise_than_actions(counting_env):
    """Each episode's stream gives `noise_size` numbers per step, whatever runs next to it."""

    class Several:
        action_size, noise_size = 1, 3

        def __init__(self):
            self.seen = []

        def act(self, observations, *, guidance_scale, noise):
            self.seen += noise.tolist()
            return 0.1 * noise.amax(-1, keepdim=True)

    policy = Several()
    together = rollout(policy, EnvSpec("test/Counting-v0"), [Episode(0, 1.0), Episode(1, 1.0)], seed=0)
    (alone,) = rollout(policy, EnvSpec("test/Counting-v0"), [Episode(1, 1.0)], seed=0)
    assert alone == together[1]
    stream = generator(0, "rollout-noise", 1)
    expected = [torch.randn(3, generator=stream).tolist() for _ in range(alone.length)]
    assert policy.seen[-alone.length :] == expected


def test_actions_are_clipped_to_the_bounds(counting_env):
    class Huge:
        action_size = noise_size = 1

        def act(self, observations, *, guidance_scale, noise):
            return torch.full_like(noise, 1e9)

    (result,) = rollout(Huge(), EnvSpec("test/Counting-v0"), [Episode(0, 1.0)], seed=0)
    assert result.episode_return == result.length


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_action_names_scale_and_step(counting_env, value):
    class Breaks:
        action_size = noise_size = 1

        def act(self, observations, *, guidance_scale, noise):
            actions = torch.zeros_like(noise)
            actions[(guidance_scale == 2.5) & (observations[:, 0] == 1)] = value
            return actions

    with pytest.raises(DivergenceError, match=r"guidance scale 2\.5, step 1 of episode 4"):
        rollout(Breaks(), EnvSpec("test/Counting-v0"), [Episode(0, 0.0), Episode(4, 2.5)], seed=0)


def test_policy_of_another_action_size(linear_policy):
    with pytest.raises(SimulationError, match=r"has 2 actions, 'InvertedPendulum-v5' takes 1"):
        rollout(linear_policy(4, 2), EnvSpec("InvertedPendulum-v5"), [Episode(0, 0.0)], seed=0)


def test_no_episodes(linear_policy):
    assert rollout(linear_policy(4, 1), EnvSpec("InvertedPendulum-v5"), [], seed=0) == []
