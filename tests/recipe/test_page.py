"""The page of a run: what its figures come from, and what it needs."""

import re

import pytest

pytest.importorskip("matplotlib", reason="needs the report extra")

from plait.recipe import pictures
from plait.recipe.page import write_page
from plait.spec.errors import UserError
from plait.workload.result import RequestRecord


def test_a_folder_without_a_stage_that_is_done_is_refused(tmp_path):
    with pytest.raises(UserError, match="run the recipe first"):
        write_page(tmp_path, "none")


def record(id: int, arrival_ns: int, *token_ns: int) -> RequestRecord:
    return RequestRecord(id, arrival_ns, 8, len(token_ns), token_ns, token_ns[-1], "length")


def test_requests_that_lost_their_keys_are_marked():
    records = [record(1, 0, 10**9, 2 * 10**9), record(2, 10**8, 3 * 10**9, 4 * 10**9)]
    words = "lost its keys and values"
    assert words in text_of(pictures.requests(records, (2,), (1.5, 2.5)))
    assert words not in text_of(pictures.requests(records, (), None))


def text_of(figure) -> str:
    """Words of a picture's legend."""
    return " ".join(text.get_text() for text in figure.axes[0].get_legend().get_texts())


def test_bits_are_placed_by_block_and_projection():
    units = {
        "model.layers": {"prune": 0.0},
        "model.layers.0.mlp.up_proj": {"weight_bits": 4.0},
        "model.layers.1.mlp.up_proj": {"weight_bits": 8.0},
    }
    figure = pictures.policy(units)
    assert figure.axes[0].get_images()[0].get_array().tolist() == [[4.0, 8.0]]
    assert re.match("<svg", pictures.svg(figure))
