"""Multilayer perceptrons, and a first layer that computes shared inputs once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cepdiff.errors import ConfigError, nearest
from cepdiff.precision import float32_products

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "mish": nn.Mish}


def activation_class(name: str) -> type[nn.Module]:
    """Return the activation of that name; raises ConfigError with the nearest names if there is none."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"no activation '{name}'; known: {', '.join(ACTIVATIONS)}.{nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


class JointLinear(nn.Module):
    """A linear layer on the concatenation of several inputs, computed per input and summed.

    Equal to `Linear(cat(inputs))`, but the inputs' leading axes only need to broadcast: what K actions of a state
    share (the state, the time) is multiplied once instead of K times.
    """

    def __init__(self, in_sizes: Sequence[int], out_size: int) -> None:
        super().__init__()
        self.in_sizes = list(in_sizes)
        joint = nn.Linear(sum(in_sizes), out_size)  # initialised with the fan-in of all inputs together
        self.weight = joint.weight
        self.bias = joint.bias

    def forward(self, *inputs: Tensor) -> Tensor:
        weights = torch.split(self.weight, self.in_sizes, 1)
        total = nn.functional.linear(inputs[0], weights[0], self.bias)
        for value, weight in zip(inputs[1:], weights[1:], strict=True):
            total = total + nn.functional.linear(value, weight)
        return total


class OutputLinear(nn.Linear):
    """A network's last linear layer, which stays in float32 under mixed precision.

    Its output is differenced, exponentiated or regressed on, for which bfloat16's three digits are too few: logits of a
    contrastive set, whose gradients must sum to zero, would drift without bound.
    """

    def forward(self, input: Tensor) -> Tensor:
        with float32_products(input):
            return nn.functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


def activations(size: int, activation: str, layer_norm: bool) -> list[nn.Module]:
    """The modules after a hidden layer of `size`: a LayerNorm if `layer_norm`, and the activation."""
    return [*([nn.LayerNorm(size)] if layer_norm else []), activation_class(activation)()]


def mlp(
    sizes: Sequence[int], activation: str = "relu", layer_norm: bool = False, first: Sequence[nn.Module] = ()
) -> nn.Sequential:
    """Linear layers between `sizes` with `activations` between them, none after the last.

    The modules in `first` come before them (e.g. the activation after a `JointLinear`).
    """
    layers: list[nn.Module] = [*first]
    for size, next_size in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(size, next_size), *activations(next_size, activation, layer_norm)]
    return nn.Sequential(*layers, OutputLinear(sizes[-2], sizes[-1]))


class JointMLP(nn.Module):
    """An MLP on concatenated inputs, see `JointLinear`: (..., sizes) with broadcasting leading axes -> (..., out)."""

    def __init__(
        self,
        in_sizes: Sequence[int],
        hidden: Sequence[int],
        out_size: int,
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.joint = JointLinear(in_sizes, hidden[0])
        first = activations(hidden[0], activation, layer_norm)
        self.rest = mlp([*hidden, out_size], activation, layer_norm, first)

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.rest(self.joint(*inputs))
        return output


def residual_block(width: int) -> nn.Sequential:
    """A pre-norm residual branch of two layers: (..., width) -> (..., width), to be added to its input."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


def present(*inputs: Tensor | None) -> list[Tensor]:
    """The inputs that are neither None nor empty: an unconditional model has no condition."""
    return [value for value in inputs if value is not None and value.shape[-1] > 0]


def parameter_count(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def all_finite(parameters: Iterable[Tensor]) -> bool:
    """True if every value is finite; one reduction per tensor, one synchronisation in total."""
    return bool(torch.stack([p.detach().isfinite().all() for p in parameters]).all())
