"""How far actions lie from the support: K samples of the behavior policy at each state stand for its density.

Distances are Euclidean in the units of the actions ([-1, 1] a dimension). "Inside" asks whether an action could have
been one of the samples, so a sample held out from the others sets the standard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cepdiff.errors import ConfigError

# Added to a state's spread: where samples coincide (actions clipped at their bounds), smaller differences are none.
RESOLUTION = 1e-3


def pairwise_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distances (..., M, K) of `a` (..., M, A) to `b` (..., K, A), without the cancellation of the matrix product."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_distance(actions: Tensor, support: Tensor) -> Tensor:
    """Distance of `actions` (..., M, A) to the nearest of their state's `support` (..., K, A) -> (..., M)."""
    return pairwise_distance(actions, support).amin(-1)


def leave_one_out_distance(support: Tensor) -> Tensor:
    """Distance of each support action to the nearest of the other K - 1, (..., K, A) -> (..., K). K is at least 2."""
    if support.shape[-2] < 2:
        raise ConfigError(f"there is {support.shape[-2]} support action a state; distances among them need at least 2")
    itself = torch.eye(support.shape[-2], dtype=torch.bool, device=support.device)
    return pairwise_distance(support, support).masked_fill(itself, torch.inf).amin(-1)


def relative_distance(actions: Tensor, support: Tensor) -> Tensor:
    """`nearest_distance` in units of the state's spread, its mean leave-one-out distance -> (..., M).

    Behavior policies are broad at some states and narrow at others; so one threshold serves all of them. One support
    action alone has no spread: the distance is then left as it is.
    """
    distance = nearest_distance(actions, support)
    if support.shape[-2] < 2:
        return distance
    return distance / (leave_one_out_distance(support).mean(-1, keepdim=True) + RESOLUTION)


def held_out_distances(support: Tensor) -> Tensor:
    """`relative_distance` of each support action to the other K - 1, (..., K, A) -> (..., K). K is at least 2."""
    if support.shape[-2] < 2:
        raise ConfigError(f"there is {support.shape[-2]} support action a state; holding one out needs at least 2")
    held_out = [
        relative_distance(one, torch.cat([before, after], -2))
        for before, one, after in (support.tensor_split([k, k + 1], -2) for k in range(support.shape[-2]))
    ]
    return torch.cat(held_out, -1)  # K of (..., 1) -> (..., K)


def inside_threshold(support: Tensor, quantile: float = 0.95) -> Tensor:
    """The relative distance that a share `quantile` of held-out support actions stays within; (N, K, A) -> ().

    Pooled over the K actions of N states. A quantile of one state's own K distances would be far too small (about
    the 0.90 for K = 16), and one of absolute distances pooled would call anything inside where the policy is narrow.
    """
    return torch.quantile(held_out_distances(support).flatten(), quantile)


def inside_support(actions: Tensor, support: Tensor, threshold: Tensor) -> Tensor:
    """Whether `actions` (..., M, A) lie inside the `support` (..., K, A) of their state -> bool (..., M).

    They are compared with K - 1 of the support actions, as each held-out one was for `inside_threshold`. A fresh
    sample of the behavior policy is thus exchangeable with a held-out one, and inside with probability `quantile`,
    on the average over states, whatever K, A and the policy are.
    """
    return relative_distance(actions, support[..., 1:, :]) <= threshold
