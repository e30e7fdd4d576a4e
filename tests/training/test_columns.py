"""A stage whose layers several processes share has the gradients of the whole one, but for rounding."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from bench.pipelines.ranks import Ranks

from plait.model.shard import COLUMNS
from plait.spec.errors import Unsupported
from plait.training.batch import Padded, Sample
from plait.training.columns import Columns
from plait.training.cut import Head, Part, load
from plait.training.rank import _layer
from tests.tiny import tiny_folder

FAMILIES = {"llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {}}
NEAR = 1e-5


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as made:
        yield made


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("columns"), request.param, initializer_range=0.05)


def batch() -> Padded:
    return Padded.of([Sample(i, i, tuple(range(5, 12 + i)), (40 + i, 41, 42), True) for i in range(3)])


def trained(part: Part) -> torch.Tensor:
    """The output, after a backward."""
    out = part(None, batch())
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return out.detach()


def shared(rank: int, folder: str, tp: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output and the gradients of the whole model, put together from those of the columns."""
    module = load(Path(folder), Head.WORDS, 0)
    columns = Columns(module, _layer(Path(folder)), tp, rank, dist.group.WORLD)
    part = Part(module, Head.WORDS, [len(module.base_model.layers)], 0)
    part.requires_grad_(True)
    out = trained(part)
    found = {name: weight.grad for name, weight in part.module.named_parameters()}
    for name in sorted(columns.partial):
        dist.all_reduce(found[name])
    return out, columns.whole(found)


def test_outputs_and_gradients_are_those_of_one_process(ranks, folder):
    (out, first), (also, second) = ranks.run(shared, str(folder), 2)
    assert torch.equal(out, also)
    module = load(folder, Head.WORDS, 0)
    part = Part(module, Head.WORDS, [len(module.base_model.layers)], 0)
    part.requires_grad_(True)
    wanted = trained(part)
    assert (out - wanted).abs().max() <= NEAR * wanted.abs().max()
    names = [name for name, _ in part.module.named_parameters()]
    assert sorted(first) == sorted(names)
    for name, weight in part.module.named_parameters():
        assert (first[name] - weight.grad).abs().max() <= NEAR * weight.grad.abs().max(), name
        if name in second:  # what is not cut has the same bits everywhere
            assert torch.equal(first[name], second[name]), name


def test_what_cannot_be_shared_is_refused(tmp_path):
    folder = tiny_folder(tmp_path, "gpt2")
    with pytest.raises(Unsupported, match="use tp 1"):
        Columns(load(folder, Head.WORDS, 0), _layer(folder), 2, 0, None)


def test_the_plan_cuts_most_weights(folder):
    module = load(folder, Head.WORDS, 0)
    whole = sum(weight.numel() for weight in module.base_model.layers.parameters())
    columns = Columns(module, _layer(folder), 2, 0, None)
    left = sum(weight.numel() for weight in module.base_model.layers.parameters())
    assert left < 0.52 * whole
    assert any(columns.counts(name) for name, _ in module.named_parameters())
    assert COLUMNS == "colwise"
