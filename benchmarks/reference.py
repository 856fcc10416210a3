"""The recipe of Lu et al. (2023) in plain eager PyTorch, the baseline of `benchmarks/speed.py`.

Written from the recipe, with the habits of its official code: items are loaded one at a time, inputs are expanded and
concatenated (a state is embedded once for each of its K actions), the schedule is recomputed in every solver step and
row, actions are drawn at s and s' of each row although s' is the next row's s, the guidance gradient is computed at
scale 0 too, the guidance step evaluates the critic again at the support actions, Adam is not fused, and each scale is
rolled out separately in its own environments.

The results are those of cepdiff. Parameters have the names and shapes of `ResidualUNet`, `QEnsemble` and `EnergyMLP`,
so that `load_state_dict` works both ways and outputs can be compared.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BETA_MIN, BETA_MAX, T_MIN = 0.1, 20.0, 1e-3
SUPPORT_STATES = 256  # states per batch of support actions
Items = dict[str, Tensor]


class Fourier(nn.Module):
    """Gaussian Fourier features of a time: (R,) -> (R, size)."""

    frequencies: Tensor

    def __init__(self, size: int = 32, scale: float = 30.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(size // 2) * scale)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[..., None] * self.frequencies * 2.0 * math.pi
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class MLP(nn.Module):
    """A multilayer perceptron on concatenated inputs: (R, sizes) -> (R,)."""

    def __init__(self, in_size: int, hidden: list[int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.joint = nn.Linear(in_size, hidden[0])
        layers: list[nn.Module] = [activation()]
        for size, next_size in itertools.pairwise([*hidden, 1]):
            layers += [nn.Linear(size, next_size), activation()]
        self.rest = nn.Sequential(*layers[:-1])

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.rest(self.joint(torch.cat(inputs, dim=-1)))
        return output.squeeze(-1)


class Block(nn.Module):
    """A residual block with the embedding added between its two layers."""

    def __init__(self, in_size: int, out_size: int, embedding_size: int = 128) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(in_size, out_size), nn.SiLU())
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding_size, out_size))
        self.second = nn.Sequential(nn.Linear(out_size, out_size), nn.SiLU())
        self.skip = nn.Linear(in_size, out_size) if in_size != out_size else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x) + self.embed(embedding)) + self.skip(x)
        return output


class ScoreNet(nn.Module):
    """The residual MLP U-Net 512/256/128: x (R, A), t (R,), states (R, S) -> eps_pred (R, A)."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.time = nn.Sequential(Fourier(), nn.Linear(32, 32))
        self.condition = nn.Sequential(nn.Linear(observation_size, 32), nn.SiLU())
        self.joint = nn.Linear(64, 128)
        self.embedding = nn.Sequential(nn.SiLU(), nn.Linear(128, 128))
        self.down = nn.ModuleList([Block(action_size, 512), Block(512, 256), Block(256, 128)])
        self.bottom = Block(128, 128)
        self.up = nn.ModuleList([Block(256, 256), Block(512, 512)])
        self.output = nn.Linear(1024, action_size)

    def forward(self, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        embedding = self.embedding(self.joint(torch.cat([self.condition(states), self.time(t)], dim=-1)))
        wide = self.down[0](x, embedding)
        middle = self.down[1](wide, embedding)
        narrow = self.down[2](middle, embedding)
        hidden = self.bottom(narrow, embedding)
        hidden = self.up[0](torch.cat([narrow, hidden], dim=-1), embedding)
        hidden = self.up[1](torch.cat([middle, hidden], dim=-1), embedding)
        output: Tensor = self.output(torch.cat([wide, hidden], dim=-1))
        return output


class TwinQ(nn.Module):
    """Two critics 3x256: states (R, S), actions (R, A) -> (2, R)."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()
        size = observation_size + action_size
        self.critics = nn.ModuleList([MLP(size, [256] * 3, nn.ReLU), MLP(size, [256] * 3, nn.ReLU)])

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([critic(actions, states) for critic in self.critics])


class EnergyNet(nn.Module):
    """The energy network 4x256: x (R, A), t (R,), states (R, S) -> logits (R,)."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        super().__init__()
        self.time = nn.Sequential(Fourier(), nn.Linear(32, 32))
        self.net = MLP(action_size + 32 + observation_size, [256] * 4, nn.SiLU)

    def forward(self, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        logits: Tensor = self.net(x, self.time(t), states)
        return logits


def load(path: Path) -> Items:
    """Transitions of an HDF5 file, row by row as in D4RL; rows at time limits are left out."""
    with h5py.File(path, "r") as file:
        arrays = {name: file[name][:] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    names = ("observations", "actions", "rewards", "terminals", "next_observations")
    rows: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(len(arrays["rewards"]) - 1):
        if arrays["timeouts"][i]:
            continue
        for name in names[:-1]:
            rows[name].append(arrays[name][i].astype(np.float32))
        rows["next_observations"].append(arrays["observations"][i + 1].astype(np.float32))
    return {name: torch.from_numpy(np.array(values)) for name, values in rows.items()}


class Transitions(Dataset[Items]):
    """Rows of a buffer, returned one at a time."""

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(self.arrays["actions"])

    def __getitem__(self, row: int) -> Items:
        return {name: array[row] for name, array in self.arrays.items()}


def batches(dataset: Transitions, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Items]:
    """Endless shuffled batches, collated item by item."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    while True:
        for items in loader:
            yield {name: values.to(device) for name, values in items.items()}


def log_alpha(t: Tensor) -> Tensor:
    """log alpha_t of the linear schedule."""
    return -(BETA_MAX - BETA_MIN) / 4.0 * t**2 - BETA_MIN / 2.0 * t


def marginal(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha_t, sigma_t and lambda_t."""
    alpha = torch.exp(log_alpha(t))
    sigma = torch.sqrt(-torch.expm1(2.0 * log_alpha(t)))
    return alpha, sigma, torch.log(alpha / sigma)


def solver_times(num_steps: int) -> Tensor:
    """The `num_steps + 1` times from 1 to T_MIN, evenly spaced in lambda_t."""
    ends = marginal(torch.tensor([1.0, T_MIN], dtype=torch.float64))[2]
    lam = torch.linspace(float(ends[0]), float(ends[1]), num_steps + 1, dtype=torch.float64)
    double = F.softplus(-2.0 * lam)  # -2 log alpha_t
    return 2.0 * double / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2.0 * (BETA_MAX - BETA_MIN) * double))


def data_prediction(
    score_net: ScoreNet, energy_net: EnergyNet | None, scale: float, x: Tensor, t: Tensor, states: Tensor
) -> Tensor:
    """x0_pred (R, A) within [-1, 1], guided at any scale if there is an energy network."""
    alpha, sigma, _ = (values[:, None] for values in marginal(t))
    eps = score_net(x, t, states)
    if energy_net is not None:
        with torch.enable_grad():
            inputs = x.detach().requires_grad_(True)
            gradient = torch.autograd.grad(energy_net(inputs, t, states).sum(), inputs)[0]
        eps = eps - scale * sigma * gradient
    x0: Tensor = (x - sigma * eps) / alpha
    return x0.clamp(-1.0, 1.0)


@torch.no_grad()
def sample(
    score_net: ScoreNet,
    states: Tensor,
    noise: Tensor,
    energy_net: EnergyNet | None = None,
    scale: float = 1.0,
    num_steps: int = 15,
) -> Tensor:
    """Actions (R, A) at `states` (R, S) by DPM-Solver++(2M) from `noise` (R, A); first order at both ends."""
    times = solver_times(num_steps).to(noise)
    x, previous = noise, None
    for step in range(num_steps):
        s, t = times[step].expand(len(x)), times[step + 1].expand(len(x))
        _, sigma_s, lam_s = (values[:, None] for values in marginal(s))
        alpha_t, sigma_t, lam_t = (values[:, None] for values in marginal(t))
        x0 = data_prediction(score_net, energy_net, scale, x, s, states)
        direction = x0
        if previous is not None and step < num_steps - 1:
            lam_before = marginal(times[step - 1].expand(len(x)))[2][:, None]
            direction = x0 + 0.5 * (lam_t - lam_s) / (lam_s - lam_before) * (x0 - previous)
        x = sigma_t / sigma_s * x - alpha_t * torch.expm1(lam_s - lam_t) * direction
        previous = x0
    return x.clamp(-1.0, 1.0)


def support_actions(score_net: ScoreNet, states: Tensor, num_actions: int, num_steps: int = 15) -> Tensor:
    """K actions of the behavior policy at each state, (R, S) -> (R, K, A), in chunks of states."""
    drawn = []
    action_size = score_net.output.out_features
    for start in range(0, len(states), SUPPORT_STATES):
        chunk = states[start : start + SUPPORT_STATES]
        repeated = torch.repeat_interleave(chunk, num_actions, dim=0)
        noise = torch.randn(len(repeated), action_size, device=states.device)
        actions = sample(score_net, repeated, noise, num_steps=num_steps)
        drawn.append(actions.reshape(len(chunk), num_actions, action_size).cpu())
    return torch.cat(drawn)


def draw_support(score_net: ScoreNet, rows: Mapping[str, Tensor], num_actions: int) -> tuple[Tensor, Tensor]:
    """Support actions (R, K, A) at s and at s' of each row, drawn separately."""
    here = support_actions(score_net, rows["observations"], num_actions)
    return here, support_actions(score_net, rows["next_observations"], num_actions)


def adam(net: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """PyTorch's default Adam, which is not fused."""
    return torch.optim.Adam(net.parameters(), lr=learning_rate)


def behavior_loss(net: ScoreNet, batch: Items, t: Tensor, eps: Tensor) -> Tensor:
    """Denoising loss at times `t` (B,) with noise `eps` (B, A)."""
    alpha, sigma, _ = (values[:, None] for values in marginal(t))
    x = alpha * batch["actions"] + sigma * eps
    squares: Tensor = (eps - net(x, t, batch["observations"])) ** 2
    return squares.sum(dim=1).mean()


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One optimiser step; returns the loss, which is logged at every step."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def behavior_step(net: ScoreNet, optimizer: torch.optim.Optimizer, batch: Items) -> float:
    """One step of the behavior model."""
    actions = batch["actions"]
    t = torch.rand(len(actions), device=actions.device) * (1.0 - T_MIN) + T_MIN
    return minimise(behavior_loss(net, batch, t, torch.randn_like(actions)), optimizer)


def expanded_q(critic: TwinQ, states: Tensor, actions: Tensor) -> Tensor:
    """min of the twins, states (B, S) and actions (B, K, A) -> (B, K)."""
    expanded = states[:, None].repeat(1, actions.shape[1], 1)
    values: Tensor = critic(expanded, actions).min(dim=0).values
    return values


class QLearning:
    """Critic and guidance, trained together as the official code does in the first half of its steps."""

    def __init__(self, critic: TwinQ, energy_net: EnergyNet, discount: float = 0.99, beta: float = 3.0) -> None:
        self.critic, self.target, self.energy_net = critic, copy.deepcopy(critic), energy_net
        self.critic_optimizer, self.energy_optimizer = adam(critic, 3e-4), adam(energy_net, 3e-4)
        self.discount, self.beta, self.tau = discount, beta, 0.005

    def critic_loss(self, batch: Items) -> Tensor:
        """In-support softmax backup (Eq. 15), beta_Q = 1."""
        with torch.no_grad():
            next_q = expanded_q(self.target, batch["next_observations"], batch["next_support_actions"])
            next_v = (torch.softmax(next_q, dim=1) * next_q).sum(dim=1)
            target = batch["rewards"] + self.discount * (1.0 - batch["terminals"]) * next_v
        first, second = self.critic(batch["observations"], batch["actions"])
        return F.mse_loss(first, target) + F.mse_loss(second, target)

    def critic_step(self, batch: Items) -> float:
        """One step of the critic and its target."""
        loss = minimise(self.critic_loss(batch), self.critic_optimizer)
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.copy_((1.0 - self.tau) * slow + self.tau * fast)
        return loss

    def guidance_loss(self, batch: Items, t: Tensor, eps: Tensor) -> Tensor:
        """In-support CEP (Eq. 16) at times `t` (B,) with noise `eps` (B, K, A)."""
        states, actions = batch["observations"], batch["support_actions"]
        num_actions = actions.shape[1]
        with torch.no_grad():
            labels = torch.softmax(self.beta * expanded_q(self.target, states, actions), dim=1)
        times = t[:, None].repeat(1, num_actions)
        alpha, sigma, _ = (values[..., None] for values in marginal(times))
        expanded = states[:, None].repeat(1, num_actions, 1)
        logits = self.energy_net(alpha * actions + sigma * eps, times, expanded)
        return -(labels * F.log_softmax(logits, dim=1)).sum(dim=1).mean()

    def guidance_step(self, batch: Items) -> float:
        """One step of the energy network."""
        actions = batch["support_actions"]
        t = torch.rand(len(actions), device=actions.device) * (1.0 - T_MIN) + T_MIN
        return minimise(self.guidance_loss(batch, t, torch.randn_like(actions)), self.energy_optimizer)


def act(
    score_net: ScoreNet, energy_net: EnergyNet, observations: NDArray[Any], scale: float, num_steps: int = 15
) -> NDArray[Any]:
    """Actions (B, A) for observations (B, S)."""
    device = next(score_net.parameters()).device
    states = torch.tensor(np.asarray(observations), dtype=torch.float32, device=device)
    noise = torch.randn(len(states), score_net.output.out_features, device=device)
    actions: NDArray[Any] = sample(score_net, states, noise, energy_net, scale, num_steps).cpu().numpy()
    return actions


def evaluate(
    score_net: ScoreNet,
    energy_net: EnergyNet,
    make_env: Callable[[], gym.Env[Any, Any]],
    scales: Sequence[float],
    episodes: int,
) -> list[list[float]]:
    """Episode returns per scale: one scale after another, one environment per episode, one batch per step."""
    returns = []
    for scale in scales:
        envs = [make_env() for _ in range(episodes)]
        observations = [env.reset(seed=100 + index)[0] for index, env in enumerate(envs)]
        totals, running = [0.0] * episodes, list(range(episodes))
        while running:
            actions = act(score_net, energy_net, np.stack([observations[i] for i in running]), scale)
            for index, action in zip(list(running), actions, strict=True):
                observations[index], reward, terminated, truncated, _ = envs[index].step(action)
                totals[index] += float(reward)
                if terminated or truncated:
                    running.remove(index)
        returns.append(totals)
    return returns
