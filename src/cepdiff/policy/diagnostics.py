"""Diagnostics of a trained run without an environment: support, values, ranking, guidance, and the scale to choose.

Everything is measured on one seeded sample of the buffer's states that have support actions. M states, K support
actions, A action size. docs/glossary.md explains each number, and what to do if it is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache, support_noise
from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.solver import time_grid
from cepdiff.energy.support_distance import (
    inside_support,
    inside_threshold,
    leave_one_out_distance,
    nearest_distance,
    pairwise_distance,
)
from cepdiff.errors import DataError
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.choice import ScaleEvidence, choose_inside, choose_scale
from cepdiff.policy.ranking import Ranking, measure_ranking
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.randomness import generator, stream_seed

PERCENTILES = (5, 25, 50, 75, 95)
# The effective sample size needs the candidates a second time; it is averaged over every fourth state to save time.
ESS_STRIDE = 4


@dataclass(frozen=True)
class GuidanceNorms:
    """Means over the states of |∇f| and of |score| = |eps_pred| / sigma_t at the solver's `times`, from 1 down.

    Taken at noised support actions, on which both networks were trained.
    """

    times: list[float]
    guidance: list[float]
    score: list[float]

    @property
    def ratios(self) -> list[float]:
        """|∇f| over |score| at each time."""
        return [guidance / score for guidance, score in zip(self.guidance, self.score, strict=True)]


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics of a run on `num_states` states.

    Args:
        data_inside: share of dataset actions inside the support, [0, 1].
        data_distance: mean distance of dataset actions to the nearest of K support actions.
        support_distance: mean distance of support actions to the nearest of the other K - 1.
        q_data: percentiles of Q(s, a) of dataset actions, "p5" to "p95", in scaled reward.
        q_support: the same of all support actions.
        q_std_actions: standard deviation of Q over a state's support actions, mean over the states.
        q_std_states: standard deviation over the states of the mean Q of their support actions.
        q_disagreement: standard deviation over the critics of Q minus its mean over the state's support actions, mean
            over states and actions: the part of `q_std_actions` on which the critics disagree. 0 for one critic.
        q_slope: mean |∇_a Q(s, a)| at the dataset actions, scaled reward per unit of action.
        norms: guidance against score over diffusion time.
        scales: the evidence of each guidance scale, ascending.
        ranking: tests of the critic's ranking of a state's actions.
        offline_choice: the scale that `choose_scale` picks.
        choice_reason: its reason, as a line of text.
        inside_choice: the one that `choose_inside` picks, for comparison.
    """

    num_states: int
    data_inside: float
    data_distance: float
    support_distance: float
    q_data: dict[str, float]
    q_support: dict[str, float]
    q_std_actions: float
    q_std_states: float
    q_disagreement: float
    q_slope: float
    norms: GuidanceNorms
    scales: list[ScaleEvidence]
    ranking: Ranking
    offline_choice: float
    choice_reason: str
    inside_choice: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """M states of the buffer: `ids` (M,) on the CPU, normalised `states` (M, S), the dataset's `actions` (M, A),
    `support` (M, K, A)."""

    ids: Tensor
    states: Tensor
    actions: Tensor
    support: Tensor


def diagnose(
    sampler: GuidedSampler,
    guided: GuidedSampler,
    critic: SoftmaxQCritic,
    data: OfflineDataModule,
    support: SupportCache,
    scales: Sequence[float],
    *,
    seed: int,
    device: torch.device | str,
    num_states: int = 1024,
) -> Diagnostics:
    """Diagnostics on `device`, a function of the networks and of `seed`; runs on one process.

    `sampler` draws the policy's actions; `guided` has the behavior and energy networks, whose norms are compared.
    Unguided samples are the reference for every scale's evidence, even if 0 is not one of `scales`. The offline choice
    is that of `choose_scale`. Raises DataError if no row of the buffer has support actions, ConfigError if there is
    only one per state.
    """
    sample = draw_states(data, support, num_states, seed, device)
    # A stream of its own: with the noise of the support actions, scale 0 would give one of them.
    stream = stream_seed(seed, "diagnostics")
    noise, clean_noise = (
        support_noise(stream, sample.ids, 1, size)[:, 0].to(device) for size in (sampler.noise_size, guided.size)
    )
    with torch.no_grad():
        q_data = critic.q_value(sample.states, sample.actions)
        q_support = critic.q_value(sample.states.unsqueeze(1), sample.support)  # (M, 1, S), (M, K, A) -> (M, K)
    slope = q_slope(critic, sample)
    threshold = inside_threshold(sample.support)

    def evidence_at(scale: float) -> ScaleEvidence:
        scales = torch.full((len(noise),), scale, device=noise.device)
        actions = sampler.sample(sample.states, noise, scales).float()
        found = scale_evidence(scale, actions, critic, sample, q_support, slope, threshold)
        some = (values[::ESS_STRIDE] for values in (sample.states, noise, scales))
        ess = sampler.effective_sample_size(*some)
        return found if ess is None else replace(found, effective_sample_size=float(ess.mean()))

    unguided = evidence_at(0.0)
    values = critic_values(critic, sample)
    ranking = measure_ranking(critic, values, sample.ids, data, support, guided, seed=seed, device=device)
    found = [unguided if scale == 0.0 else evidence_at(scale) for scale in sorted({float(scale) for scale in scales})]
    evidence = [replace(e, gain=e.value - unguided.value) for e in found]
    choice, reason = choose_scale(evidence, ranking)
    data_actions = sample.actions.unsqueeze(1)  # (M, A) -> (M, 1, A)
    return Diagnostics(
        num_states=len(sample.ids),
        data_inside=float(inside_support(data_actions, sample.support, threshold).float().mean()),
        data_distance=float(nearest_distance(data_actions, sample.support).mean()),
        support_distance=float(leave_one_out_distance(sample.support).mean()),
        q_data=percentiles(q_data),
        q_support=percentiles(q_support),
        q_std_actions=float(q_support.std(-1).mean()),
        q_std_states=float(q_support.mean(-1).std(correction=0)),
        q_disagreement=disagreement(values),
        q_slope=float(slope.mean()),
        norms=guidance_norms(guided, sample, clean_noise),
        scales=evidence,
        ranking=ranking,
        offline_choice=choice,
        choice_reason=reason,
        inside_choice=choose_inside(evidence, unguided.inside_support),
    )


def draw_states(
    data: OfflineDataModule, support: SupportCache, num_states: int, seed: int, device: torch.device | str
) -> Sample:
    """`num_states` rows of the buffer with support actions, drawn without replacement; all if there are fewer."""
    rows = (support.slots[: len(data.buffer)] >= 0).nonzero().squeeze(-1)  # the state of row i is state i
    if len(rows) == 0:
        raise DataError(f"no row of the buffer has support actions in {support.folder}")
    picks = torch.randperm(len(rows), generator=generator(seed, "diagnostics", "rows"))[:num_states]
    ids = rows[picks].sort().values
    return Sample(
        ids,
        data.normalize(data.buffer.states[ids]).to(device),
        data.buffer.actions[ids].to(device),
        support.of(ids).to(device),
    )


@torch.no_grad()
def scale_evidence(
    scale: float,
    actions: Tensor,
    critic: SoftmaxQCritic,
    sample: Sample,
    q_support: Tensor,
    slope: Tensor,
    threshold: Tensor,
) -> ScaleEvidence:
    """The evidence of guided `actions` (M, A), without its gain; `q_support` (M, K) is Q of the support actions,
    `slope` (M,) is from `q_slope`, `threshold` from `energy.support_distance.inside_threshold`."""
    values = critic.sampling_net(sample.states, actions)  # (num_critics, M)
    q = critic.q_value(sample.states, actions)
    distance, nearest = pairwise_distance(actions.unsqueeze(1), sample.support).squeeze(1).min(-1)
    q_nearest = q_support.gather(-1, nearest.unsqueeze(-1)).squeeze(-1)  # (M, K) -> (M,)
    return ScaleEvidence(
        guidance_scale=scale,
        value=float(q.mean()),
        gain=0.0,
        inside_support=float(inside_support(actions.unsqueeze(1), sample.support, threshold).float().mean()),
        distance=float(distance.mean()),
        nearest_value=float(q_nearest.mean()),
        penalized_value=float((q_nearest - slope * distance).mean()),
        twin_gap=float((values.amax(0) - values.amin(0)).mean()),
    )


@torch.no_grad()
def spread(critic: SoftmaxQCritic, sample: Sample) -> float:
    """Standard deviation of Q over a state's support actions, mean over states; 1 if that is 0."""
    q = critic.q_value(sample.states.unsqueeze(1), sample.support)  # (M, 1, S), (M, K, A) -> (M, K)
    return float(q.std(-1).mean()) or 1.0


def q_slope(critic: SoftmaxQCritic, sample: Sample) -> Tensor:
    """|∇_a Q(s, a)| (M,) at the dataset actions: how fast the critic's value changes with the action."""
    no_time = torch.zeros((), device=sample.actions.device)
    gradient = logits_gradient(lambda a, _, s: critic.q_value(s, a), sample.actions, no_time, sample.states)
    slope: Tensor = gradient.norm(dim=-1)
    return slope


@torch.no_grad()
def critic_values(critic: SoftmaxQCritic, sample: Sample) -> Tensor:
    """Each critic's values (C, M, K) of the support actions."""
    q: Tensor = critic.sampling_net(sample.states.unsqueeze(1), sample.support)
    return q


def disagreement(q: Tensor) -> float:
    """Spread of the advantages of `critic_values` (C, M, K), see `Diagnostics.q_disagreement`."""
    advantages = q - q.mean(-1, keepdim=True)
    return float(advantages.std(0).mean()) if len(q) > 1 else 0.0


@torch.no_grad()
def guidance_norms(guided: GuidedSampler, sample: Sample, noise: Tensor) -> GuidanceNorms:
    """Norms at one support action per state, noised by `noise` (M, A), at the times where the solver starts a step."""
    schedule, solver, behavior, logits = guided.schedule, guided.solver, guided.networks["behavior"], guided.logits
    assert logits is not None
    times = [point.t for point in time_grid(schedule, solver.num_steps, solver.spacing)[:-1]]
    pulls, scores = [], []
    for time in times:
        t = torch.tensor(time, dtype=noise.dtype, device=noise.device)
        x = perturb(schedule, sample.support[:, 0], t, noise)
        eps = behavior(x, t, sample.states)
        scores.append(float((eps / schedule.sigma(t)).norm(dim=-1).mean()))
        pulls.append(float(logits_gradient(logits, x, t, sample.states).norm(dim=-1).mean()))
    return GuidanceNorms(times, pulls, scores)


def percentiles(values: Tensor) -> dict[str, float]:
    """Percentiles of all `values`, "p5" to "p95"."""
    levels = torch.tensor(PERCENTILES, device=values.device) / 100.0
    found = torch.quantile(values.float().flatten(), levels).tolist()
    return {f"p{level}": value for level, value in zip(PERCENTILES, found, strict=True)}
