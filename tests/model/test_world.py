"""Several processes of one instance: their sums and messages, and what is said when one does not come."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from plait.kernels.choice import choose
from plait.model.config import Rank
from plait.model.world import Tag, World, WorldError

SPAWN = multiprocessing.get_context("spawn")


def together(body, tp: int, pp: int, store: Path) -> list:
    """What `body(world)` gives in each process, in the order of ranks."""
    answers = SPAWN.SimpleQueue()
    ranks = [Rank(tp, pp, index) for index in range(tp * pp)]
    processes = [SPAWN.Process(target=run, args=(body, rank, str(store), answers)) for rank in ranks]
    for process in processes:
        process.start()
    got = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    assert not store.exists()
    return [got[rank.index] for rank in ranks]


def run(body, rank: Rank, store: str, answers) -> None:
    torch.set_num_threads(1)
    world = World(rank, store, 60)
    answers.put((rank.index, body(world)))
    world.close()


def parts(rank: int, dtype: torch.dtype, sizes=(1, 7, 4096, 200_001)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def sums(world: World) -> bool:
    """Whether sums are those of all parts in the order of ranks, bit by bit, through memory and gloo."""
    for dtype in (torch.float32, torch.bfloat16):
        columns = [parts(rank, dtype) for rank in range(world.rank.tp)]
        for mine, all_parts in zip(columns[world.rank.column], zip(*columns, strict=True), strict=True):
            total = all_parts[0].float()
            for part in all_parts[1:]:
                total = total + part.float()
            if not torch.equal(world.sum(mine), total.to(dtype)):
                return False
    return world._shared is not None or choose().native is None


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (3, 1), (2, 2)])
def test_sums_have_the_same_bits_everywhere(tp, pp, tmp_path):
    assert together(sums, tp, pp, tmp_path / "store") == [True] * (tp * pp)


def passed_on(world: World) -> list[float]:
    """Each stage adds one to what it gets; the last one sends it to the first."""
    rank, seen = world.rank, []
    for step in range(20):
        x = torch.full((3,), float(step))
        if rank.stage:
            world.receive(x, rank.stage - 1, Tag.ACTIVATIONS)
        if not rank.last:
            world.send(x + 1, rank.stage + 1, Tag.ACTIVATIONS)
        else:
            world.send(x, 0, Tag.TOKENS)
        if not rank.stage:
            seen.append(float(world.receive(x, rank.pp - 1, Tag.TOKENS)[0]))
    return seen


def test_messages_arrive_in_order(tmp_path):
    got = together(passed_on, 1, 3, tmp_path / "store")
    assert got == [[step + 2.0 for step in range(20)], [], []]


def leaves_alone(rank: Rank, store: str, answers) -> None:
    world = World(rank, store, 2)
    if rank.index:
        answers.get()
        return
    with pytest.raises(WorldError) as caught:
        world.sum(torch.ones(4))
    answers.put(str(caught.value))
    answers.put("go")


def test_who_does_not_come_is_named(tmp_path):
    answers = SPAWN.SimpleQueue()
    with pytest.raises(WorldError, match=r"rank 0 of 2: meeting the others"):
        World(Rank(2, 1, 0), str(tmp_path / "alone"), 1)
    ranks = [Rank(2, 1, index) for index in range(2)]
    first = SPAWN.Process(target=leaves_alone, args=(ranks[0], str(tmp_path / "store"), answers))
    hold = SPAWN.SimpleQueue()
    second = SPAWN.Process(target=leaves_alone, args=(ranks[1], str(tmp_path / "store"), hold))
    first.start()
    second.start()
    said = answers.get()
    hold.put("go")
    first.join()
    second.join()
    assert said.startswith("rank 0 of 2: sum over the ranks of stage 0 did not end well within 2 s")
