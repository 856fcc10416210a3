"""Training data as a module gets it: the order of rows, and each field at each row, on a handmade buffer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from cepdiff.data.blocks import BlockLoader
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.support_cache import SupportCache, fill
from cepdiff.errors import ConfigError, DataError
from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.types import STEP_SEEDS, Batch

# The loader


def blocks(start: int = 0, stop: int = 20, **options: Any) -> list[Batch]:
    settings: dict[str, Any] = {"batch_size": 6, "block_size": 4, "seed": 0, "stage": "critic", **options}
    rows = settings.pop("rows", torch.arange(100))
    return list(BlockLoader(lambda rows: {"rows": rows}, rows, start=start, stop=stop, **settings))


def steps(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """(rows (steps, B), seeds (steps,)) of all blocks."""
    return torch.cat([batch["rows"] for batch in batches]), torch.cat([batch[STEP_SEEDS] for batch in batches])


def test_blocks_have_their_shapes_and_end_where_they_should() -> None:
    lengths = [len(batch["rows"]) for batch in blocks(stop=10)]
    assert lengths == [4, 4, 2]
    assert blocks()[0]["rows"].shape == (4, 6)
    assert blocks()[0][STEP_SEEDS].shape == (4,)
    assert blocks(start=20) == []


def test_a_later_start_is_the_tail() -> None:
    rows, seeds = steps(blocks())
    for start in (4, 7, 19):
        later_rows, later_seeds = steps(blocks(start=start))
        assert torch.equal(later_rows, rows[start:])
        assert torch.equal(later_seeds, seeds[start:])


def test_the_block_size_and_the_end_change_nothing() -> None:
    rows, seeds = steps(blocks())
    for options in ({"block_size": 1}, {"block_size": 50}, {"stop": 9}):
        other_rows, other_seeds = steps(blocks(**options))
        assert torch.equal(other_rows, rows[: len(other_rows)])
        assert torch.equal(other_seeds, seeds[: len(other_seeds)])


def test_loaders_do_not_disturb_each_other_or_the_global_generator() -> None:
    loader = BlockLoader(
        lambda rows: {"rows": rows}, torch.arange(100), batch_size=6, block_size=4, seed=0, stage="critic", stop=20
    )
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    pairs = list(zip(loader, loader, strict=True))
    assert len(pairs) == 5
    assert all(torch.equal(one["rows"], two["rows"]) for one, two in pairs)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_steps_seeds_and_stages_see_other_rows() -> None:
    rows, seeds = steps(blocks())
    assert len(rows.unique(dim=0)) == 20
    assert len(seeds.unique()) == 20
    for options in ({"seed": 1}, {"stage": "guidance"}):
        other_rows, other_seeds = steps(blocks(**options))
        assert not torch.equal(other_rows, rows)
        assert not set(other_seeds.tolist()) & set(seeds.tolist())


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(world: int) -> None:
    whole, seeds = steps(blocks())
    parts = [steps(blocks(rank=rank, world=world)) for rank in range(world)]
    for rank, (rows, rank_seeds) in enumerate(parts):
        assert torch.equal(rows, whole[:, rank::world])
        assert torch.equal(rank_seeds, seeds)  # a single noise stream, split by the modules


def test_only_the_given_rows_are_drawn_and_all_of_them() -> None:
    allowed = torch.tensor([3, 17, 18, 90])
    rows, _ = steps(blocks(stop=200, rows=allowed))
    assert rows.unique().tolist() == allowed.tolist()
    counts = torch.stack([(rows == row).sum() for row in allowed]) / rows.numel()
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.05, rtol=0)


def test_a_loader_without_an_end_goes_on() -> None:
    loader = BlockLoader(lambda rows: {"rows": rows}, torch.arange(5), batch_size=2, block_size=3, seed=0, stage="x")
    iterator = iter(loader)
    assert len([next(iterator) for _ in range(50)]) == 50


def test_impossible_loaders_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"critic.batch_size 6 cannot be shared equally by 4 processes"):
        blocks(world=4)
    with pytest.raises(DataError, match="no row of the buffer can serve the critic stage"):
        blocks(rows=torch.arange(0))


# The fields. Rows 0-2 end in a terminal, 3-4 at a time limit, 5-6 at the end of the data.


def raw(**changes: Any) -> RawArrays:
    arrays: dict[str, Any] = {
        "observations": np.array([[0, 10], [1, 11], [2, 12], [3, 13], [4, 14], [5, 15], [6, 16]], np.float32),
        "actions": np.array([[-2.0], [0.0], [4.0], [1.0], [-1.0], [2.5], [3.0]], np.float32),
        "rewards": np.array([1, 2, 3, 4, 5, 6, 7], np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
        "metadata": {"action_low": -2.0, "action_high": 4.0, "env_id": "Some-v0"},
    }
    return RawArrays(**{**arrays, **changes})


class Handmade(OfflineDataModule):
    """Serves its own arrays, by overriding `load_buffer` as intended."""

    def __init__(self, arrays: RawArrays, **options: Any) -> None:
        super().__init__("handmade", **{"reward_rule": "none", **options})
        self.arrays = arrays

    def load_buffer(self) -> TransitionBuffer:
        return TransitionBuffer.from_arrays(self.arrays)


def module(next_observations: bool = False, **options: Any) -> OfflineDataModule:
    extra = {"next_observations": raw().observations + 100.0} if next_observations else {}
    data = Handmade(raw(**extra), **options)
    data.setup()
    return data


K = 2


def supported(data: OfflineDataModule, folder: Path, state_ids: Tensor) -> OfflineDataModule:
    """Support actions of state i are [[i], [i + 0.5]] / 10, with energies [i, -i]."""
    SupportCache.create(folder, state_ids, K, 1, chunk_size=2)
    cache = SupportCache(folder, len(data.buffer.states))
    for _ in fill(cache, lambda ids: (ids.reshape(-1, 1, 1) + torch.tensor([[0.0], [0.5]])) / 10.0, cache.pending()):
        pass
    return data.with_support(cache, torch.stack([state_ids, -state_ids], 1).float())


def test_fields_of_every_row() -> None:
    gather = module().gatherer(("observations", "actions", "rewards", "terminals"))
    batch = gather(torch.tensor([[2, 0], [6, 6]]))
    assert batch["observations"].tolist() == [[[2, 12], [0, 10]], [[6, 16], [6, 16]]]
    torch.testing.assert_close(batch["actions"], torch.tensor([[[1.0], [-1.0]], [[2 / 3], [2 / 3]]]))
    assert batch["rewards"].tolist() == [[3, 1], [7, 7]]
    assert batch["terminals"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert batch["terminals"].dtype == torch.float32


def test_only_what_is_asked_for_is_gathered() -> None:
    assert set(module().gatherer(("rewards",))(torch.tensor([0]))) == {"rewards"}


def test_next_observations_follow_within_the_episode() -> None:
    """At the time limit (row 4) and the end of the data (row 6) they are unknown, so these rows are not drawn."""
    data = module()
    rows = data.rows(("observations", "next_observations"))
    assert rows.tolist() == [0, 1, 2, 3, 5]
    assert data.rows(("observations", "actions")).tolist() == list(range(7))
    batch = data.gatherer(("observations", "next_observations"))(torch.tensor([0, 1, 3, 5]))
    assert torch.equal(batch["next_observations"], batch["observations"] + 1.0)


def test_next_observations_of_the_file_win() -> None:
    data = module(next_observations=True)
    assert data.rows(("next_observations",)).tolist() == list(range(7))
    batch = data.gatherer(("observations", "next_observations"))(torch.arange(7))
    assert torch.equal(batch["next_observations"], batch["observations"] + 100.0)


@pytest.mark.filterwarnings("error")
def test_support_actions_and_energies_of_both_states(tmp_path: Path) -> None:
    data = supported(module(), tmp_path, torch.arange(7))
    fields = ("support_actions", "next_support_actions", "energies")
    assert data.rows((*fields, "next_observations")).tolist() == [0, 1, 2, 3, 5]
    rows = torch.tensor([[0, 1], [3, 5]])
    batch = data.gatherer(fields)(rows)
    expected = (rows.reshape(2, 2, 1, 1) + torch.tensor([[0.0], [0.5]])) / 10.0
    torch.testing.assert_close(batch["support_actions"], expected)
    torch.testing.assert_close(batch["next_support_actions"], expected + 0.1)
    torch.testing.assert_close(batch["energies"], torch.stack([rows, -rows], -1).float())


def test_rows_without_support_are_left_out(tmp_path: Path) -> None:
    """Only states 0, 1 and 5 have support: both s and s' of row 0, but only s of rows 1 and 5."""
    data = supported(module(), tmp_path, torch.tensor([0, 1, 5]))
    assert data.rows(("observations", "support_actions")).tolist() == [0, 1, 5]
    assert data.rows(("next_observations", "next_support_actions")).tolist() == [0]
    assert data.rows(("observations", "actions")).tolist() == list(range(7))
    energies = data.gatherer(("energies",))(torch.tensor([5, 0]))["energies"]
    assert energies.tolist() == [[5, -5], [0, 0]]


def test_with_support_leaves_the_first_alone(tmp_path: Path) -> None:
    plain = module()
    other = supported(plain, tmp_path, torch.arange(7))
    assert other is not plain
    assert other.buffer is plain.buffer
    with pytest.raises(DataError, match=r"support actions: draw them first.*with_support"):
        plain.gatherer(("support_actions",))
    with pytest.raises(DataError, match=r"support actions: draw them first.*with_support"):
        plain.rows(("support_actions",))


def test_energies_that_are_missing(tmp_path: Path) -> None:
    plain = module()
    supported(plain, tmp_path, torch.arange(7))
    data = plain.with_support(SupportCache(tmp_path, 7))
    with pytest.raises(DataError, match=r"energies .*with_support"):
        data.gatherer(("energies",))


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'goals', which this data module does not have"):
        module().gatherer(("observations", "goals"))


@pytest.mark.parametrize("next_observations", [False, True])
def test_observations_are_standardised_by_the_observations(next_observations: bool) -> None:
    """Mean and deviation come from the N observations; next observations use the same."""
    data = module(next_observations, normalize_observations=True)
    batch = data.gatherer(("observations", "next_observations"))(torch.tensor([0, 1, 2, 3, 5]))
    x = torch.from_numpy(raw().observations)
    mean, std = x.mean(0), x.std(0, correction=0)
    torch.testing.assert_close(batch["observations"], ((x - mean) / std)[[0, 1, 2, 3, 5]])
    if next_observations:
        torch.testing.assert_close(batch["next_observations"], ((x + 100.0 - mean) / std)[[0, 1, 2, 3, 5]])
    assert data.spec.observation_mean == pytest.approx(mean.tolist())
    assert data.spec.observation_std == pytest.approx(std.tolist(), rel=1e-5)
    torch.testing.assert_close(data.normalize(x[2]), (x[2] - mean) / std)


def test_a_constant_observation_becomes_zero() -> None:
    observations = raw().observations.copy()
    observations[:, 1] = 7.0
    data = Handmade(raw(observations=observations), normalize_observations=True)
    data.setup()
    assert data.normalize(data.buffer.observations)[:, 1].tolist() == [0.0] * 7


def test_without_normalisation_observations_stay_raw() -> None:
    assert module().spec.observation_mean is None
    assert torch.equal(module().normalize(torch.ones(3, 2)), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [1, 2, 3, 4, 5, 6, 7]),
        ("minus_one", [0, 1, 2, 3, 4, 5, 6]),
        ("return_range", [1000 / 3 * r for r in (1, 2, 3, 4, 5, 6, 7)]),  # the complete episodes return 6 and 9
        (None, [1000 / 3 * r for r in (1, 2, 3, 4, 5, 6, 7)]),
    ],
)
def test_reward_rules(rule: str | None, expected: list[float]) -> None:
    data = module(reward_rule=rule)
    batch = data.gatherer(("rewards",))(torch.arange(7))
    assert batch["rewards"].tolist() == pytest.approx(expected)


def test_an_unknown_rule_is_refused_before_any_training() -> None:
    with pytest.raises(ConfigError, match="minus_on"):
        module(reward_rule="minus_on")


def test_sizes_bounds_and_name() -> None:
    data = module()
    assert data.sizes == (2, 1)
    assert data.spec.action_low == (-2.0,)
    assert data.spec.action_high == (4.0,)
    assert data.dataset_name == "handmade"
    assert OfflineDataModule("minari:mujoco/hopper/expert-v0").dataset_name == "mujoco-hopper-expert-v0"
    assert OfflineDataModule("some/where/own.hdf5").dataset_name == "own"
    assert OfflineDataModule("walker2d-medium-v2").dataset_name == "walker2d-medium-v2"


def test_impossible_settings_and_too_early_questions() -> None:
    with pytest.raises(ConfigError, match="block_size is 0"):
        OfflineDataModule("x", block_size=0)
    for question in (lambda d: d.buffer, lambda d: d.sizes, lambda d: d.rows(())):
        with pytest.raises(DataError, match="setup"):
            question(OfflineDataModule("x"))
    with pytest.raises(DataError, match="Trainer"):
        module().train_dataloader()


def test_an_own_file_is_read_with_its_notes(tmp_path: Path) -> None:
    path = tmp_path / "own.hdf5"
    write_arrays(path, raw())
    data = OfflineDataModule(str(path), reward_rule="none")
    data.prepare_data()
    data.setup()
    assert data.metadata["env_id"] == "Some-v0"
    fields = ("observations", "actions", "rewards", "terminals")
    for name, value in data.gatherer(fields)(torch.arange(7)).items():
        assert torch.equal(value, module().gatherer(fields)(torch.arange(7))[name])
    wider = OfflineDataModule(str(path), action_high=8.0)
    wider.setup()
    assert wider.spec.action_high == (8.0,)  # the argument overrides the file's metadata


class Probe(StageModule):
    """Learns nothing and records the rewards it gets."""

    stage = "critic"
    batch_fields = ("rewards", "observations")

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(2, 1), 1e-3, batch_size=4)
        self.seen: list[Tensor] = []

    def loss(self, batch: Batch, noise: RandomStream) -> Any:
        self.seen.append(batch["rewards"])
        loss = self.net(batch["observations"]).mean()
        return loss, {"loss": loss.detach()}


def make_trainer(max_steps: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_subclass_needs_no_more_than_load_buffer() -> None:
    """The class's own description; no dataset of that name is looked up or downloaded."""
    trainer = make_trainer(2)
    trainer.fit(Probe(), datamodule=Handmade(raw()))
    assert trainer.global_step == 2


def test_a_trainer_is_served_from_the_step_that_it_has_reached(tmp_path: Path) -> None:
    write_arrays(tmp_path / "own.hdf5", raw())
    data = OfflineDataModule(str(tmp_path / "own.hdf5"), reward_rule="none", block_size=3, seed=5)
    probe, trainer = Probe(), make_trainer(7)
    trainer.fit(probe, datamodule=data)
    assert trainer.global_step == 7
    rewards = torch.stack(probe.seen)
    assert rewards.shape == (7, 4)
    expected = list(
        BlockLoader(
            data.gatherer(("rewards",)),
            torch.arange(7),
            batch_size=4,
            block_size=3,
            seed=5,
            stage="critic",
            stop=7,
        )
    )
    assert torch.equal(rewards, torch.cat([batch["rewards"] for batch in expected]))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=probe,
        global_step=5,
        max_steps=7,
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    (tail,) = list(data.train_dataloader())
    assert torch.equal(tail["rewards"], rewards[5:])
