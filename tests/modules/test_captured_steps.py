"""Captured optimiser steps: a CUDA graph repeats the same steps, and none of them waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from small_modules import Stream, block, critic, every_module, every_stage, fit, make, minibatch, weights
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.modules import graphs
from cepdiff.modules.graphs import CapturedSteps, make_capturable, make_portable
from cepdiff.modules.noise import RandomStream, RandomTape
from devices import NoWaiting, capture_steps, needs_gpu


def repeated(step: Callable[[], None]) -> Callable[[], None]:
    """Replaces `cuda_graph` without a GPU: the same number of warm-ups, then the step itself."""
    for _ in range(graphs.WARM_UPS):
        step()
    return step


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes modules train by captured steps on the CPU too."""
    capture_steps(monkeypatch, repeated)


@every_module
def test_captured_steps_are_the_steps(name: str, request: pytest.FixtureRequest) -> None:
    """Bit for bit: weights, averages, buffers and metrics, over blocks of different lengths.

    The learning rate is a power of two, so float32 on the device holds it as exactly as a Python float.
    """
    blocks = [range(4), range(4, 8), range(8, 10)]
    one_by_one, replayed = (make(name, learning_rate=2.0**-7, lr_schedule="constant", warmup_steps=0) for _ in range(2))
    expected = fit(one_by_one, [block(one_by_one, steps) for steps in blocks], max_steps=10)
    request.getfixturevalue("captured")
    trainer = fit(replayed, [block(replayed, steps) for steps in blocks], max_steps=10)
    assert trainer.global_step == expected.global_step == 10
    state = weights(one_by_one)
    assert [key for key, value in weights(replayed).items() if not torch.equal(value, state[key])] == []
    assert trainer.callback_metrics == expected.callback_metrics


@pytest.mark.parametrize("name", ["behavior-options", "critic-options"])
def test_captured_steps_follow_the_schedule(name: str, request: pytest.FixtureRequest) -> None:
    """Up to rounding of the learning rate, which changes at every step."""
    one_by_one, replayed = make(name), make(name)
    expected = fit(one_by_one, [block(one_by_one, range(8))], max_steps=8)
    request.getfixturevalue("captured")
    trainer = fit(replayed, [block(replayed, range(8))], max_steps=8)
    rate = f"{one_by_one.stage}/learning_rate"
    torch.testing.assert_close(trainer.callback_metrics[rate], expected.callback_metrics[rate])
    assert float(trainer.callback_metrics[rate]) < one_by_one.learning_rate
    for key, value in weights(one_by_one).items():
        torch.testing.assert_close(replayed.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@every_module
def test_no_step_waits_for_the_device(name: str) -> None:
    module = make(name, lr_schedule="constant")
    optimizer = torch.optim.AdamW(module.net.parameters(), lr=1e-3, fused=True)
    steps = CapturedSteps(module, optimizer, block(module, range(2)), capture=repeated)
    with NoWaiting():
        steps._step()


@every_stage
def test_the_loss_is_one_graph(name: str) -> None:
    """`fullgraph` rejects graph breaks: no value decides what is computed."""
    module = make(name)
    batch, tape = minibatch(module), RandomTape(1, torch.zeros(1, dtype=torch.int64))
    expected, _ = module.loss(batch, tape)
    tape.fill([3])
    tape.rewind()
    expected, _ = module.loss(batch, tape)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        tape._next = 0
        value: Tensor = module.loss(batch, tape)[0]
        return value

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), expected)


@every_stage
def test_making_them_changes_nothing(name: str) -> None:
    module = make(name)
    optimizer = torch.optim.AdamW(module.net.parameters(), lr=1e-3, fused=True)
    before = weights(module)
    CapturedSteps(module, optimizer, block(module, range(2)), capture=repeated)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    assert moments
    assert not any(bool(value.any()) for value in moments)


def test_a_run_goes_on_where_it_was(captured: None) -> None:
    """Ten steps at once match six and then four more from the checkpoint's optimiser state."""
    whole, parts = make("critic"), make("critic")
    fit(whole, [block(whole, range(10))], max_steps=10)
    first = fit(parts, [block(parts, range(6))], max_steps=6)
    state = first.optimizers[0].state_dict()
    make_portable(state)
    assert {type(group["lr"]) for group in state["param_groups"]} == {float}
    again = make("critic")
    again.load_state_dict(parts.state_dict())
    configure = again.configure_optimizers

    def resumed() -> Any:
        optimizer = configure()
        optimizer.load_state_dict(state)
        return optimizer

    again.configure_optimizers = resumed  # type: ignore[method-assign]
    fit(again, [block(again, range(6, 10))], max_steps=4)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_loss_that_waits_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = critic()
    optimizer = torch.optim.AdamW(module.net.parameters(), lr=1e-3, fused=True)

    def refuse(step: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    message = (
        r"SoftmaxQCritic cannot be captured .*\(CUDA error: operation not permitted.*capturing\).*cuda_graphs: false"
    )
    with pytest.raises(ConfigError, match=message):
        CapturedSteps(module, optimizer, block(module, range(2)), capture=refuse)


def test_a_loss_whose_draws_change_is_refused() -> None:
    module = make("behavior")
    optimizer = torch.optim.AdamW(module.net.parameters(), lr=1e-3, fused=True)
    original, calls = module.loss, []

    def loss(batch: dict[str, Tensor], noise: RandomStream) -> Any:
        calls.append(noise.uniform(1 + len(calls)))
        return original(batch, noise)

    module.loss = loss  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"draws other numbers in each step.*cuda_graphs: false"):
        CapturedSteps(module, optimizer, block(module, range(2)), capture=repeated)


def test_a_tape_gives_the_numbers_of_the_seeds() -> None:
    turn = torch.zeros(1, dtype=torch.int64)
    tape = RandomTape(2, turn)

    def draws(noise: RandomStream) -> list[Tensor]:
        return [noise.uniform(5), noise.normal(3, 2), noise.shared_uniform(4)]

    draws(tape)
    tape.fill([11, 12])
    for step, seed in enumerate((11, 12)):
        turn.fill_(step)
        tape.rewind()
        expected = draws(RandomStream(seed, torch.device("cpu")))
        assert all(torch.equal(*pair) for pair in zip(draws(tape), expected, strict=True))


def test_blocks_that_do_not_fit() -> None:
    module = make("behavior")
    optimizer = torch.optim.AdamW(module.net.parameters(), lr=1e-3, fused=True)
    steps = CapturedSteps(module, optimizer, block(module, range(3)), capture=repeated)
    assert steps.fits(block(module, range(2)))
    assert not steps.fits(block(module, range(4)))
    assert not steps.fits(block(module, range(3), rows=9))


def test_learning_rate_moves_to_the_device_and_back() -> None:
    optimizer = torch.optim.AdamW(make("critic").net.parameters(), lr=1e-3, fused=True)
    make_capturable(optimizer, torch.device("cpu"))
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)
    state = optimizer.state_dict()
    make_portable(state)
    assert state["param_groups"][0]["lr"] == pytest.approx(1e-3)


@needs_gpu
@every_module
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_graphs_on_a_gpu(name: str, precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays give the same weights as single steps, and `cuda_graphs` decides which of the two runs."""
    made: list[CapturedSteps] = []
    original = CapturedSteps.__init__
    monkeypatch.setattr(
        CapturedSteps, "__init__", lambda self, *a, **k: (made.append(self), original(self, *a, **k))[1]
    )
    results = []
    for graphs_on in (False, True):
        module = make(name, cuda_graphs=graphs_on)
        blocks = [block(module, range(4)), block(module, range(4, 7))]
        trainer = Trainer(
            accelerator="gpu",
            devices=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
            max_steps=7,
        )
        trainer.fit(module, Stream(blocks))
        assert bool(made) == graphs_on
        results.append(weights(module))
    tolerance = 1e-5 if precision == "32-true" else 1e-2
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=tolerance, atol=tolerance)
