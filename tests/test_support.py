"""The cache of support actions: filled by any number of processes, resumed after a kill."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.support_cache import MARKS, NOISE_CHUNK, SupportCache, fill, states_of_rows, support_noise
from cepdiff.errors import DivergenceError, OutputError, RunError

K, A, NUM_STATES, CHUNK = 3, 2, 40, 4
STATE_IDS = torch.tensor([*range(0, 20, 2), *range(25, 38)])  # 23 states: five chunks of 4 and one of 3


class Draw:
    """Actions computed from the state id; records the ids requested, and can be killed."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.drawn: list[int] = []
        self.calls = 0
        self.killed_at = killed_at

    def __call__(self, state_ids: Tensor) -> Tensor:
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.drawn += state_ids.tolist()
        return actions_of(state_ids)


def actions_of(state_ids: Tensor) -> Tensor:
    return state_ids.reshape(-1, 1, 1) / 100 + torch.arange(K * A).reshape(K, A) / 1000


def lay_out(folder: Path, state_ids: Tensor = STATE_IDS, chunk_size: int = CHUNK) -> SupportCache:
    SupportCache.create(folder, state_ids, K, A, chunk_size)
    return SupportCache(folder, NUM_STATES)


def run(cache: SupportCache, draw: Callable[[Tensor], Tensor], rank: int = 0, world: int = 1) -> list[int]:
    return list(fill(cache, draw, cache.pending(rank, world), rank))


def check_whole(cache: SupportCache, state_ids: Tensor = STATE_IDS) -> None:
    assert not cache.pending()
    assert cache.pending() == []
    torch.testing.assert_close(torch.tensor(np.array(cache.actions)), actions_of(state_ids))


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 23, 1000])
def test_every_state_is_drawn_once(tmp_path: Path, chunk_size: int) -> None:
    assert not SupportCache.exists(tmp_path)
    cache = lay_out(tmp_path, chunk_size=chunk_size)
    assert SupportCache.exists(tmp_path)
    assert cache.pending()
    assert cache.num_actions == K
    draw = Draw()
    done = run(cache, draw)
    assert sum(done) == len(STATE_IDS)
    assert max(done) == min(chunk_size, len(STATE_IDS))
    assert draw.drawn == STATE_IDS.tolist()
    check_whole(cache)
    check_whole(SupportCache(tmp_path, NUM_STATES))  # on disk, not only in memory


def test_slots_lead_from_a_state_to_its_actions(tmp_path: Path) -> None:
    cache = lay_out(tmp_path)
    run(cache, Draw())
    assert len(cache.slots) == NUM_STATES
    for state in range(NUM_STATES):
        slot = int(cache.slots[state])
        if state in STATE_IDS.tolist():
            torch.testing.assert_close(torch.tensor(cache.actions[slot]), actions_of(torch.tensor([state]))[0])
        else:
            assert slot == -1


def test_a_kill_between_chunks_costs_nothing(tmp_path: Path) -> None:
    killed, resumed = Draw(killed_at=3), Draw()
    with pytest.raises(KeyboardInterrupt):
        run(lay_out(tmp_path), killed)
    cache = SupportCache(tmp_path, NUM_STATES)
    assert cache.pending()
    run(cache, resumed)
    check_whole(cache)
    assert killed.drawn + resumed.drawn == STATE_IDS.tolist()


def test_a_kill_while_a_chunk_is_written_draws_it_again(tmp_path: Path) -> None:
    """Half of its bytes are on disk, its mark is not."""
    cache = lay_out(tmp_path)
    chunks = fill(cache, Draw(), cache.pending())
    next(chunks)
    chunks.close()
    with (tmp_path / "actions.npy").open("r+b") as file:
        file.seek(cache.actions.offset + CHUNK * K * A * 4)  # start of the second chunk
        file.write(b"\xff" * 30)
    resumed, cache = Draw(), SupportCache(tmp_path, NUM_STATES)
    assert cache.pending() == [1, 2, 3, 4, 5]
    run(cache, resumed)
    check_whole(cache)
    assert resumed.drawn == STATE_IDS[CHUNK:].tolist()


@pytest.mark.parametrize("cut", [1, 2])
def test_a_torn_mark_never_stands_for_another_chunk(tmp_path: Path, cut: int) -> None:
    """Only the first '1' of the mark of chunk 11 may have reached the disk."""
    cache = lay_out(tmp_path, chunk_size=1)
    cache.write(11, actions_of(STATE_IDS[11:12]))
    assert 11 not in cache.pending()
    (marks,) = tmp_path.glob(MARKS.format("*"))
    marks.write_bytes(marks.read_bytes()[:-cut])
    assert set(cache.pending()) >= set(range(23)) - {11}
    run(cache, Draw())
    check_whole(SupportCache(tmp_path, NUM_STATES))


def test_a_chunk_that_another_process_draws_again_is_whole(tmp_path: Path) -> None:
    """Its old mark is in a file that is read later."""
    cache = lay_out(tmp_path)
    cache.write(0, actions_of(STATE_IDS[:CHUNK]) / 2, rank=1)
    cache.write(0, actions_of(STATE_IDS[:CHUNK]), rank=0)
    assert 0 not in SupportCache(tmp_path, NUM_STATES).pending()


@pytest.mark.parametrize("world", [2, 3])
def test_shards_of_several_ranks_equal_one_process(tmp_path: Path, world: int) -> None:
    lay_out(tmp_path)
    draws = [Draw() for _ in range(world)]
    for rank in reversed(range(world)):
        run(SupportCache(tmp_path, NUM_STATES), draws[rank], rank, world)
    check_whole(SupportCache(tmp_path, NUM_STATES))
    assert all(draw.drawn for draw in draws)
    assert sorted(state for draw in draws for state in draw.drawn) == STATE_IDS.tolist()


def test_another_number_of_ranks_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    lay_out(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(SupportCache(tmp_path, NUM_STATES), Draw(killed_at=1), 1, 2)
    alone = Draw()
    run(SupportCache(tmp_path, NUM_STATES), alone)
    check_whole(SupportCache(tmp_path, NUM_STATES))
    assert len(alone.drawn) == len(STATE_IDS) - CHUNK


def test_laying_out_again_forgets_the_first(tmp_path: Path) -> None:
    run(lay_out(tmp_path), Draw())
    cache = lay_out(tmp_path, STATE_IDS[:7])
    assert cache.pending()
    run(cache, Draw())
    check_whole(cache, STATE_IDS[:7])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "actions.npy").unlink(),
        lambda folder: (folder / "actions.npy").write_bytes(b""),
        lambda folder: (folder / "actions.npy").write_bytes((folder / "actions.npy").read_bytes()[:-100]),
        lambda folder: (folder / "actions.npy").write_bytes(b"no array at all"),
        lambda folder: (folder / "state_ids.npy").write_bytes(b""),
        lambda folder: (folder / "state_ids.npy").write_bytes(b"\x93NUMPY"),
        lambda folder: np.save(folder / "state_ids.npy", np.arange(5)),
        lambda folder: np.save(folder / "state_ids.npy", STATE_IDS.numpy() + 30),
        lambda folder: (folder / "chunk_size").unlink(),
        lambda folder: (folder / "chunk_size").write_text("0"),
        lambda folder: (folder / "chunk_size").write_text("many"),
        lambda folder: (folder / "chunk_size").write_bytes(b"\xff\xfe"),
        lambda folder: np.save(folder / "actions.npy", np.zeros((len(STATE_IDS), K, A))),
        lambda folder: np.save(folder / "actions.npy", np.zeros((len(STATE_IDS), K * A), np.float32)),
        lambda folder: np.save(folder / "state_ids.npy", STATE_IDS.numpy().astype(np.float32)),
        lambda folder: np.save(folder / "state_ids.npy", STATE_IDS.numpy()[:, None]),
        lambda folder: np.save(folder / "state_ids.npy", STATE_IDS.numpy()[::-1]),
        lambda folder: np.save(folder / "state_ids.npy", STATE_IDS.numpy() - 1),
        lambda folder: np.save(folder / "state_ids.npy", np.maximum(STATE_IDS.numpy(), 2)),
        lambda folder: (folder / MARKS.format(0)).mkdir(),
    ],
    ids=[
        "no actions",
        "empty actions",
        "short actions",
        "foreign actions",
        "empty ids",
        "torn ids",
        "other ids",
        "ids beyond the buffer",
        "no chunk size",
        "chunk size 0",
        "chunk size in words",
        "chunk size of bytes",
        "actions in float64",
        "actions of two axes",
        "ids in float32",
        "ids of two axes",
        "ids in reverse",
        "negative ids",
        "an id twice",
        "a folder for marks",
    ],
)
def test_a_damaged_cache_is_refused_with_what_to_do(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    lay_out(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match="delete that folder and run again"):
        SupportCache(tmp_path, NUM_STATES).pending()


@pytest.mark.parametrize(
    ("state_ids", "shape"),
    [(STATE_IDS + 1, (K, A)), (STATE_IDS[:-1], (K, A)), (STATE_IDS, (K - 1, A)), (STATE_IDS, (K, A + 1))],
)
def test_a_cache_of_other_states_or_sizes_is_refused(tmp_path: Path, state_ids: Tensor, shape: tuple[int, int]) -> None:
    cache = lay_out(tmp_path)
    cache.require(STATE_IDS, K, A)
    with pytest.raises(RunError, match="delete that folder and run again"):
        cache.require(state_ids, *shape)


@pytest.mark.parametrize(
    "marks",
    [b"<1>\n<2>\n", b"<1 0>", b"<" + b"9" * 5000 + b" ab>", b"<1 00ff00ff00ff00ff>\n", b"\xff\xfe<\x00", b"1\n2\n"],
)
def test_marks_that_no_process_wrote_stand_for_no_chunk(tmp_path: Path, marks: bytes) -> None:
    lay_out(tmp_path)
    (tmp_path / MARKS.format(0)).write_bytes(marks)
    assert SupportCache(tmp_path, NUM_STATES).pending() == [0, 1, 2, 3, 4, 5]


def test_a_chunk_that_changed_after_it_was_marked_is_drawn_again(tmp_path: Path) -> None:
    run(lay_out(tmp_path), Draw())
    actions = np.load(tmp_path / "actions.npy")
    actions[CHUNK : 2 * CHUNK] = actions[2 * CHUNK : 3 * CHUNK]
    np.save(tmp_path / "actions.npy", actions)
    cache = SupportCache(tmp_path, NUM_STATES)
    assert cache.pending() == [1]
    run(cache, Draw())
    check_whole(SupportCache(tmp_path, NUM_STATES))


def test_samples_that_are_nan_are_no_support(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="NaN"):
        run(lay_out(tmp_path), lambda state_ids: actions_of(state_ids) / 0.0 - torch.inf)


def test_a_full_disk_is_found_before_the_first_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match=r"actions\.npy: cannot be written \(No space left on device\)"):
        lay_out(tmp_path)
    assert not SupportCache.exists(tmp_path)
    monkeypatch.undo()
    run(lay_out(tmp_path), Draw())
    check_whole(SupportCache(tmp_path, NUM_STATES))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is reserved")
def test_the_space_of_a_cache_is_taken_when_it_is_laid_out(tmp_path: Path) -> None:
    """A hole in the file would be filled through memory, where a full disk is a bus error."""
    SupportCache.create(tmp_path, torch.arange(10_000), K, A, CHUNK)
    found = (tmp_path / "actions.npy").stat()
    assert found.st_blocks * 512 >= found.st_size > 10_000 * K * A * 4


def test_noise_of_a_state_does_not_depend_on_the_others() -> None:
    everything = torch.arange(3 * NOISE_CHUNK)
    noise = support_noise(0, everything, K, A)
    subset = torch.tensor([3, NOISE_CHUNK - 1, NOISE_CHUNK, 2 * NOISE_CHUNK + 7])
    assert torch.equal(support_noise(0, subset, K, A), noise[subset])
    assert torch.equal(support_noise(0, everything[:5], K, A), noise[:5])


def test_noise_is_normal_and_differs_between_states_actions_and_seeds() -> None:
    ids = torch.arange(2 * NOISE_CHUNK)
    noise = support_noise(0, ids, K, A)
    assert noise.shape == (2 * NOISE_CHUNK, K, A)
    assert len(noise.reshape(-1).unique()) > 0.99 * noise.numel()
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert not torch.equal(support_noise(1, ids, K, A), noise)
    assert support_noise(0, ids[:0], K, A).shape == (0, K, A)


def test_states_of_rows_are_each_named_once() -> None:
    """Rows 0-2 end in a terminal, 3-4 at a time limit whose next state only the file can give."""
    observations = np.arange(5, dtype=np.float32)[:, None]
    arrays = {
        "observations": observations,
        "actions": np.zeros((5, 1), np.float32),
        "rewards": np.zeros(5, np.float32),
        "terminals": np.array([0, 0, 1, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1], bool),
    }
    implicit = TransitionBuffer.from_arrays(RawArrays(**arrays))
    assert states_of_rows(implicit, torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert states_of_rows(implicit, torch.tensor([0])).tolist() == [0, 1]
    assert states_of_rows(implicit, torch.tensor([4])).tolist() == [4]  # its successor is unknown
    explicit = TransitionBuffer.from_arrays(RawArrays(**arrays, next_observations=observations + 1.0))
    assert states_of_rows(explicit, torch.tensor([0, 1])).tolist() == [0, 1, 2]
    assert explicit.states[states_of_rows(explicit, torch.tensor([4]))].flatten().tolist() == [4.0, 5.0]
