"""Distance of actions from the support: K samples of the behavior policy at each state represent its density.

Distances are Euclidean, in units of the actions ([-1, 1] per dimension). "Inside" means that an action could have been
one of the samples, so its threshold comes from samples held out from the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cepdiff.errors import ConfigError

# Added to a state's spread, so that tiny differences do not count if samples coincide (clipped actions).
RESOLUTION = 1e-3


def pairwise_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distances (..., M, K) of `a` (..., M, A) to `b` (..., K, A).

    The default of cdist expands |a|² - 2ab + |b|², which cancels for points close together but far from 0.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_distance(actions: Tensor, support: Tensor) -> Tensor:
    """Distance of `actions` (..., M, A) to the nearest in their state's `support` (..., K, A) -> (..., M)."""
    return pairwise_distance(actions, support).amin(-1)


def leave_one_out_distance(support: Tensor) -> Tensor:
    """Distance of each support action to the nearest of the other K - 1, (..., K, A) -> (..., K); needs K >= 2."""
    if support.shape[-2] < 2:
        raise ConfigError(f"{support.shape[-2]} support action per state; distances among them need at least 2")
    itself = torch.eye(support.shape[-2], dtype=torch.bool, device=support.device)
    return pairwise_distance(support, support).masked_fill(itself, torch.inf).amin(-1)


def relative_distance(actions: Tensor, support: Tensor) -> Tensor:
    """`nearest_distance` in units of the state's spread, its mean leave-one-out distance -> (..., M).

    Behavior policies are broad at some states and narrow at others; this makes one threshold fit all of them. A single
    support action has no spread, so the distance then stays absolute.
    """
    distance = nearest_distance(actions, support)
    if support.shape[-2] < 2:
        return distance
    return distance / (leave_one_out_distance(support).mean(-1, keepdim=True) + RESOLUTION)


def held_out_distances(support: Tensor) -> Tensor:
    """`relative_distance` of each support action to the other K - 1, (..., K, A) -> (..., K); needs K >= 2."""
    if support.shape[-2] < 2:
        raise ConfigError(f"{support.shape[-2]} support action per state; holding one out needs at least 2")
    held_out = [
        relative_distance(one, torch.cat([before, after], -2))
        for before, one, after in (support.tensor_split([k, k + 1], -2) for k in range(support.shape[-2]))
    ]
    return torch.cat(held_out, -1)  # K of (..., 1) -> (..., K)


def inside_threshold(support: Tensor, quantile: float = 0.95) -> Tensor:
    """Relative distance within which a share `quantile` of held-out support actions stays; (N, K, A) -> ().

    Pooled over the K actions of N states. A quantile of one state's K distances would be far too small (about the 0.90
    for K = 16), and one of pooled absolute distances would accept anything where the policy is narrow.
    """
    return torch.quantile(held_out_distances(support).flatten(), quantile)


def inside_support(actions: Tensor, support: Tensor, threshold: Tensor) -> Tensor:
    """True where `actions` (..., M, A) are inside the `support` (..., K, A) of their state -> bool (..., M).

    They are compared with K - 1 of the support actions, like the held-out ones of `inside_threshold`. So a fresh sample
    of the behavior policy is exchangeable with a held-out one, and inside with probability `quantile` on average over
    states, whatever K, A and the policy are.
    """
    return relative_distance(actions, support[..., 1:, :]) <= threshold
