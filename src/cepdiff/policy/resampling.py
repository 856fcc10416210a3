"""Samplers that draw K candidates per state and choose among them.

B batch, K candidates, A action size. Candidates a_k are drawn from a proposal r(a|s) and have log-weights
log p(a_k|s) - log r(a_k|s), up to a constant of s, for the target p. One of them, drawn by its weight, is a sample of p
in the limit of many candidates (self-normalised importance sampling; Rubin 1987). The effective sample size of the
weights measures how near that limit is.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from cepdiff.energy.bellman import lower_bound
from cepdiff.energy.objectives import effective_sample_size
from cepdiff.errors import ConfigError, RunError
from cepdiff.networks.tempered import Tempered, at_scale
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.ranges import NonNegative, Range, Repeats, check_arguments

NoiseScale = Annotated[float, Range(0, 1, "(]")]
AtLeastOne = Annotated[float, Range(1)]
_BISECTIONS = 30


def drawn(log_weights: Tensor, normal: Tensor) -> Tensor:
    """The index (...) of one of K candidates, with probability softmax_K(`log_weights` (..., K)).

    `normal` (...) is standard normal; the cumulative weights are inverted at Phi(`normal`).
    """
    uniform = 0.5 * torch.erfc(normal * -math.sqrt(0.5))
    cumulative = log_weights.softmax(-1).cumsum(-1)
    # Relative to the sum, which rounding can move away from 1, so that the index stays below K.
    return (cumulative < uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(-1)


def weighted_mean(candidates: Tensor, log_weights: Tensor) -> Tensor:
    """Mean (..., A) of `candidates` (..., K, A) under softmax_K(`log_weights` (..., K))."""
    return (log_weights.softmax(-1).unsqueeze(-1) * candidates).sum(-2)


def tempered_weights(log_weights: Tensor, least: float) -> Tensor:
    """`log_weights` (..., K) times the largest factor (...) in [0, 1] that has an effective sample size of `least`.

    Adaptive tempering (Jasra et al. 2011), by bisection: the effective sample size does not increase with the factor.
    """
    low = torch.zeros_like(log_weights[..., :1])
    high = torch.ones_like(low)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        enough = (effective_sample_size(-middle * log_weights, 1.0) >= least).unsqueeze(-1)
        low, high = middle.where(enough, low), high.where(enough, middle)
    enough = (effective_sample_size(-log_weights, 1.0) >= least).unsqueeze(-1)
    return log_weights.where(enough, low * log_weights)


def medoid(candidates: Tensor, log_weights: Tensor) -> Tensor:
    """The index (...) of the candidate with the smallest weighted sum of squared distances to the others.

    It is the one nearest to the weighted mean, since Σ_j w_j |a_i - a_j|² = |a_i - mean|² + a constant.
    """
    return (candidates - weighted_mean(candidates, log_weights).unsqueeze(-2)).square().sum(-1).argmin(-1)


def taken(candidates: Tensor, index: Tensor) -> Tensor:
    """The candidates (..., A) at `index` (...) of `candidates` (..., K, A)."""
    where = index[..., None, None].expand(*index.shape, 1, candidates.shape[-1])
    return candidates.gather(-2, where).squeeze(-2)


def average(candidates: Tensor, log_weights: Tensor, choose: str) -> Tensor:
    """The weighted mean (..., A) of `candidates` (..., K, A), or their medoid if `choose` says so."""
    if choose == "mean":
        return weighted_mean(candidates, log_weights)
    return taken(candidates, medoid(candidates, log_weights))


class CandidateSampler(GuidedSampler):
    """Base class of samplers that draw K candidates per state in one batch; what depends on the state is computed once.

    Args:
        parts: as in `GuidedSampler`.
        num_candidates: K.
        noise_scale: factor of the solver's noise; below 1 candidates vary less.
    """

    def __init__(self, parts: SamplerParts, num_candidates: Repeats = 8, noise_scale: NoiseScale = 1.0) -> None:
        check_arguments(CandidateSampler, locals(), "sampler")
        super().__init__(parts)
        self.num_candidates = num_candidates
        self.noise_scale = noise_scale

    @property
    def noise_size(self) -> int:
        return self.num_candidates * self.size

    def candidates(self, condition: Tensor, noise: Tensor, scale: Tensor | None, *, static: bool) -> Tensor:
        """Candidates (..., K, A) from the first K * A numbers of `noise`, guided at `scale` (...) unless it is None."""
        numbers = noise[..., : self.num_candidates * self.size]
        numbers = numbers.reshape(*noise.shape[:-1], self.num_candidates, self.size)
        if scale is not None and not static and not bool(scale.any()):
            scale = None
        if scale is not None:
            scale = scale.unsqueeze(-1)  # (...) -> (..., 1), for all candidates
        return self._plain(self._of_candidates(condition, numbers), numbers, scale)

    def _of_candidates(self, condition: Tensor, candidates: Tensor) -> Tensor:
        """`condition` (..., S) as (..., 1, S), which broadcasts against candidates, or as (..., K, S) if headed."""
        condition = condition.unsqueeze(-2)
        return condition.expand(*candidates.shape[:-1], -1) if self.headed else condition

    def _plain(self, condition: Tensor, numbers: Tensor, scale: Tensor | None = None) -> Tensor:
        """Samples of the guided sampler from scaled noise; leading axes broadcast."""
        return super().sample(condition, self.noise_scale * numbers, scale, static=scale is not None)


class Averaged(CandidateSampler):
    """The mean or the medoid of K samples at the row's guidance scale; the critic is not used.

    If actions form separate groups, the mean can lie between them; the medoid is always one of the samples.

    Args:
        parts: as in `GuidedSampler`.
        choose: "mean", or "medoid": the sample nearest to the mean.
        num_candidates: K; 1 is the guided sampler with scaled noise.
        noise_scale: as in `CandidateSampler`.
    """

    def __init__(
        self,
        parts: SamplerParts,
        choose: Literal["mean", "medoid"] = "mean",
        num_candidates: Repeats = 8,
        noise_scale: NoiseScale = 1.0,
    ) -> None:
        check_arguments(Averaged, locals(), "sampler")
        super().__init__(parts, num_candidates, noise_scale)
        self.choose = choose

    def sample(
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None, *, static: bool = False
    ) -> Tensor:
        candidates = self.candidates(condition, noise, guidance_scale, static=static)
        return average(candidates, torch.zeros_like(candidates[..., 0]), self.choose)


class Resampled(CandidateSampler):
    """One of K candidates, or their mean, by weights that target p(a|s) ∝ q(a|s) exp(scale beta Q(s, a)).

    Candidates are drawn from q, or guided at `candidate_scale` c, in which case their density relative to q is divided
    out:

        log w = scale beta Q(s, a) - c f(a, t_min, s)

    f are the energy network's logits. Guided candidates have the density q exp(c f) only at c = 0 and c = 1, where
    guidance is exact. For another c the target is approximate, unless the network is `Tempered`: its logits at c then
    replace c f. Q is the critic's; in a problem without a critic f(a, t_min, s) replaces beta Q.

    At scale 0 candidates are unguided and have equal weights. "draw" and "best" then take the first, a sample of the
    behavior policy; "mean" and "medoid" are those of `Averaged`.

    Args:
        parts: as in `GuidedSampler`.
        choose: "draw" one by its weight, which needs one more normal number; the weighted "mean"; the "medoid", which
            is the candidate nearest to that mean; or the "best", with the highest Q, the limit of large scales.
        num_candidates: K.
        candidate_scale: c, the guidance scale of the candidates.
        noise_scale: as in `CandidateSampler`; below 1, q is the distribution of samples from the scaled noise.
        min_effective_samples: smallest effective sample size of the weights, in [1, K]. In states where it would be
            smaller, the log-weights are multiplied by the largest factor that keeps it.

    Raises:
        ConfigError: `min_effective_samples` exceeds `num_candidates`.
    """

    needs: ClassVar[tuple[str, ...]] = ("behavior", "energy", "critic")

    def __init__(
        self,
        parts: SamplerParts,
        choose: Literal["draw", "mean", "medoid", "best"] = "draw",
        num_candidates: Repeats = 16,
        candidate_scale: NonNegative = 0.0,
        noise_scale: NoiseScale = 1.0,
        min_effective_samples: AtLeastOne = 1.0,
    ) -> None:
        check_arguments(Resampled, locals(), "sampler")
        if min_effective_samples > num_candidates:
            raise ConfigError(
                f"sampler.min_effective_samples is {min_effective_samples}; "
                f"expected at most num_candidates, {num_candidates}"
            )
        self.candidate_scale = candidate_scale
        self.min_effective_samples = min_effective_samples
        super().__init__(parts, num_candidates, noise_scale)
        self.choose = choose
        if self.tempered is not None:
            self.tempered.check_scales([candidate_scale])

    @property
    def noise_size(self) -> int:
        return super().noise_size + (self.choose == "draw")

    @property
    def tempered(self) -> Tempered | None:
        """None too where the energy network is not used, so that its range does not bound the scale."""
        unused = self.candidate_scale == 0.0 and "critic" in self.networks
        return None if unused else super().tempered

    @property
    def has_energy(self) -> bool:
        needs_guidance = self.candidate_scale > 0.0 or "critic" not in self.networks
        return super().has_energy or not needs_guidance

    def sample(
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None, *, static: bool = False
    ) -> Tensor:
        scale = torch.zeros_like(noise[..., 0]) if guidance_scale is None else guidance_scale
        takes_first = self.choose in ("draw", "best")
        if takes_first and not static and not bool(scale.any()):
            return self._plain(condition, noise[..., : self.size])
        candidates, log_weights = self.weighed(condition, noise, scale, static=static)
        if not takes_first:
            return average(candidates, log_weights, self.choose)
        index = log_weights.argmax(-1) if self.choose == "best" else drawn(log_weights, noise[..., -1])
        return taken(candidates, index.where(scale != 0, 0))

    def weighed(
        self, condition: Tensor, noise: Tensor, scale: Tensor, *, static: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Candidates (..., K, A) and their log-weights (..., K) at `scale` (...), up to a constant per row.

        For "best" the weights are the candidates' values.
        """
        own_scale = self.candidate_scale * (scale != 0) if self.candidate_scale else None
        candidates = self.candidates(condition, noise, own_scale, static=static)
        if not static and not bool(scale.any()):
            return candidates, torch.zeros_like(candidates[..., 0])  # there may be no critic yet
        with torch.no_grad():
            value = self.value(condition, candidates)
            if self.choose == "best":
                return candidates, value
            log_weights = scale.unsqueeze(-1) * value
            if own_scale is not None:
                tilt = self._clean_logits(condition, candidates, self.candidate_scale)
                log_weights = log_weights - (scale != 0).unsqueeze(-1) * tilt
            if self.min_effective_samples > 1.0:
                log_weights = tempered_weights(log_weights, self.min_effective_samples)
        return candidates, log_weights

    def value(self, condition: Tensor, candidates: Tensor) -> Tensor:
        """beta Q (..., K) of candidates (..., K, A), Q as the critic's `q_value`, in the unit of the energies."""
        if "critic" not in self.networks:
            return self._clean_logits(condition, candidates, 1.0)
        q = lower_bound(self.networks["critic"](condition.unsqueeze(-2), candidates), self.deviations)
        return self.objective.inverse_temperature / self.energy_unit * q

    def effective_sample_size(self, condition: Tensor, noise: Tensor, guidance_scale: Tensor) -> Tensor | None:
        """1 / Σ_k w_k² (...) of the normalised weights, in [1, K]; None for "best", which has no weights."""
        if self.choose == "best":
            return None
        return effective_sample_size(-self.weighed(condition, noise, guidance_scale)[1], 1.0)

    def _clean_logits(self, condition: Tensor, candidates: Tensor, scale: float) -> Tensor:
        """Logits (..., K) at t_min of candidates (..., K, A), at `scale` if tempered, otherwise multiplied by it."""
        if self.logits is None:
            raise RunError("there is neither a critic nor an energy network yet to weigh candidates by: use scale 0")
        t_min = torch.full((), self.schedule.t_min, dtype=candidates.dtype, device=candidates.device)
        condition = self._of_candidates(condition, candidates)
        if self.tempered is not None:
            return at_scale(self._logits(), scale)(candidates, t_min, condition)
        return scale * self.logits(candidates, t_min, condition)


class BestOfN(Resampled):
    """The one of K candidates with the highest Q: the limit of `Resampled` at large scales.

    Scale 0 is a sample of the behavior policy; every other scale is the best candidate. Options as in `Resampled`.
    """

    def __init__(
        self,
        parts: SamplerParts,
        num_candidates: Repeats = 16,
        candidate_scale: NonNegative = 0.0,
        noise_scale: NoiseScale = 1.0,
    ) -> None:
        super().__init__(parts, "best", num_candidates, candidate_scale, noise_scale)
