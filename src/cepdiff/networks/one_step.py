"""A network that acts in one step, from noise, state and guidance scale to an action."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cepdiff.networks.mlp import JointLinear, OutputLinear, present, residual_block
from cepdiff.ranges import Blocks, Count, Width


class OneStepNet(nn.Module):
    """A residual MLP from noise (..., Z), state (..., S) and guidance scale (...) to an action (..., A) in [-1, 1].

    Leading axes broadcast. The scale enters as log(1 + scale), which has the finest resolution at small scales, and
    as a flag that it is above 0: a sampler may jump there, as `BestOfN` does.

    Args:
        observation_size: S, or 0.
        action_size: A.
        noise_size: Z, the noise size of the sampler to distil; None is A.
        width: width of all layers.
        depth: number of residual blocks, of two layers each.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        noise_size: Count | None = None,
        width: Width = 256,
        depth: Blocks = 3,
    ) -> None:
        super().__init__()
        sizes = (noise_size or action_size, observation_size, 2)
        self.joint = JointLinear([size for size in sizes if size], width)
        self.blocks = nn.ModuleList(residual_block(width) for _ in range(depth))
        self.output = nn.Sequential(nn.SiLU(), OutputLinear(width, action_size))

    def forward(self, noise: Tensor, condition: Tensor | None, guidance_scale: Tensor) -> Tensor:
        scale = torch.stack([guidance_scale.log1p(), (guidance_scale > 0).to(guidance_scale.dtype)], -1)
        hidden = self.joint(*present(noise, condition, scale))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return torch.tanh(self.output(hidden))
