"""Gradients a few rows at a time: the same step, with the same random numbers."""

from __future__ import annotations

import pytest
import torch
from small_modules import BEHAVIOR_NETS, STAGES, block, fit, make, unconditional_behavior, weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cepdiff.errors import ConfigError
from cepdiff.modules.noise import RandomStream, RandomTape
from devices import capture_steps

SEPARABLE = (*STAGES, "behavior-options", "critic-options", "guidance-averaged", "guidance-dps")


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", SEPARABLE)
def test_parts_add_up_to_the_step(name: str, captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after six steps of eight rows, all at once and two rows at a time."""
    if captured:
        capture_steps(monkeypatch)
    whole, parts = make(name, batch_size=8), make(name, batch_size=8, micro_batch_size=2)
    at_once = fit(whole, [block(whole, range(6))], max_steps=6)
    rows: list[int] = []
    original = parts.loss
    parts.loss = lambda batch, noise: (  # type: ignore[method-assign]
        rows.append(len(next(iter(batch.values())))),
        original(batch, noise),
    )[1]
    trainer = fit(parts, [block(parts, range(6))], max_steps=6)
    assert set(rows) == {2}
    # The gradient of a contrastive network's last bias is rounding noise, which Adam scales up.
    expected = {key: value for key, value in weights(whole).items() if "net.rest.3.bias" not in key}
    for key, value in expected.items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=2e-3, atol=2e-5)
    loss = f"{whole.stage}/loss"
    torch.testing.assert_close(trainer.callback_metrics[loss], at_once.callback_metrics[loss], rtol=1e-4, atol=1e-6)


def test_less_memory_is_held() -> None:
    """The largest tensor of a step has the rows of one part."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.requires_grad is False and out.ndim == 2:
                self.size = max(self.size, out.numel())
            return out

    sizes = []
    for micro in (None, 64):
        module = make("behavior", batch_size=512, micro_batch_size=micro)
        with Largest() as seen:
            module.accumulate(
                {key: values[0] for key, values in block(module, range(1), rows=512).items() if key != "step_seeds"},
                RandomStream(0, torch.device("cpu")),
                torch.autograd.backward,
            )
        sizes.append(seen.size)
    assert sizes[1] <= sizes[0] / 4


@pytest.mark.parametrize("rank", [0, 1])
def test_parts_of_a_rank_are_rows_of_the_global_batch(rank: int) -> None:
    device = torch.device("cpu")
    everything = RandomStream(5, device).normal(12, 3)
    parts = RandomStream(5, device, rank, 2).parts(3)
    drawn = [part.normal(2, 3) for part in parts]
    mine = everything[rank::2]
    assert all(torch.equal(values, mine[part::3]) for part, values in enumerate(drawn))


def test_parts_of_a_tape() -> None:
    turn = torch.zeros(1, dtype=torch.int64)
    tape = RandomTape(1, turn)
    for fill in (False, True):
        if fill:
            tape.fill([9])
        drawn = [(part.uniform(4), part.shared_uniform(3), part.normal(4, 2)) for part in tape.parts(2)]
    whole = RandomStream(9, torch.device("cpu"))
    uniform, shared, normal = whole.uniform(8), whole.shared_uniform(3), whole.normal(8, 2)
    for part, values in enumerate(drawn):
        expected = uniform[part::2], shared, normal[part::2]
        assert all(torch.equal(*pair) for pair in zip(values, expected, strict=True))


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "at least 1"), (-2, "at least 1"), (3, "a divisor of batch_size 8")]
)
def test_a_size_that_does_not_divide(size: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"micro_batch_size is {size}; expected {expected}"):
        make("behavior", batch_size=8, micro_batch_size=size)


def test_contrasted_batches_stay_whole() -> None:
    with pytest.raises(ConfigError, match="compares all rows of a batch"):
        make("batch-guidance", batch_size=8, micro_batch_size=2)
    with pytest.raises(ConfigError, match="compares all rows of a batch"):
        unconditional_behavior(net=BEHAVIOR_NETS["mlp"], average_targets=True, batch_size=8, micro_batch_size=2)
