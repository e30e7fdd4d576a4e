"""Models cut into stages: parts give what the whole gives, and their weights together are the whole's."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from plait.spec.errors import Unsupported, UserError
from plait.training.batch import Padded, Sample
from plait.training.cut import Head, Part, even, layers_of, load
from tests.tiny import tiny_folder

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt_neox")
SAMPLES = [
    Sample(0, 0, (5, 6, 7), (8, 9), True),
    Sample(1, 0, (11, 12), (13, 14, 15, 16), True),
    Sample(2, 1, (3,) * 9, (40,), False),
]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("cut"), request.param, num_hidden_layers=4)


@pytest.mark.parametrize("head", list(Head))
def test_parts_give_what_the_whole_gives(folder, head):
    padded = Padded.of(SAMPLES)
    try:
        counts = even(layers_of(load(folder, head, 0)), 3)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    hidden = None
    for stage in range(3):
        hidden = Part(load(folder, head, 0), head, counts, stage)(hidden, padded)
    whole = load(folder, head, 0)
    if head is Head.WORDS:
        wanted = whole(input_ids=padded.ids_BT, use_cache=False).logits
    else:
        wanted = whole.score(whole.base_model(input_ids=padded.ids_BT, use_cache=False).last_hidden_state)
        wanted = wanted.squeeze(-1)
    torch.testing.assert_close(hidden, wanted[:, padded.kept :], rtol=1e-5, atol=1e-5)


def test_weights_of_parts_are_those_of_the_whole(folder):
    whole = load(folder, Head.WORDS, 0)
    names = dict(whole.named_parameters())
    found: dict[str, torch.Tensor] = {}
    try:
        counts = even(layers_of(whole), 2)
    except Unsupported as refusal:
        pytest.skip(str(refusal))
    for stage in range(2):
        held = Part(load(folder, Head.WORDS, 0), Head.WORDS, counts, stage).weights()
        assert not found.keys() & held.keys()
        found |= held
    assert found.keys() == names.keys()
    assert all(torch.equal(found[name], names[name]) for name in names)


def test_a_tied_table_is_known_at_both_ends(tmp_path):
    folder = tiny_folder(tmp_path, "llama", num_hidden_layers=4, tie_word_embeddings=True)
    first, middle, last = (
        Part(load(folder, Head.WORDS, 0), Head.WORDS, (1, 2, 1), stage) for stage in range(3)
    )
    assert middle.tied is None
    assert torch.equal(first.tied, last.tied)
    names = [*first.weights(), *middle.weights(), *last.weights()]
    assert sorted(names) == sorted(dict(load(folder, Head.WORDS, 0).named_parameters()))


def test_padding_knows_what_predicts_what():
    padded = Padded.of(SAMPLES)
    assert padded.kept == 1
    for b, sample in enumerate(SAMPLES):
        for r, token in enumerate(sample.response):
            before = int(padded.before_BR[b, r]) + padded.kept
            assert padded.ids_BT[b, before + 1] == token
        assert int(padded.last_B[b]) + padded.kept == sample.tokens - 1
    assert padded.mask_BR.sum(1).tolist() == [2, 4, 1]


def test_too_few_layers_are_refused():
    assert even(7, 3) == (3, 2, 2)
    with pytest.raises(UserError, match="fewer stages"):
        even(2, 3)


def test_weights_that_are_pickles_are_not_read(tiny_llama, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_llama, folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        load(folder, Head.WORDS, 0)
