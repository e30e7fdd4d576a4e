"""A whole model on Triton's kernels and the GPU's pool. Runs under the interpreter, on CPU tensors.

Loading alone compares it with transformers, whole and in pieces.
"""

import random
from pathlib import Path

import pytest
import torch

from plait.kernels.choice import choose
from plait.model.config import ModelConfig
from plait.model.graph import DecodeGraphs
from plait.model.inputs import StepInputs
from plait.model.model import Model
from plait.model.staging import Static, staged, used_tables
from tests.model.test_decode_tape import PAGE, filled, step
from tests.tiny import tiny_config, tiny_folder

SIZES = (1, 2, 4, 6)


def again(compute):
    """Stands for a CUDA graph: a result at one address, computed anew by each replay."""
    result = compute().clone()
    return result, lambda: result.copy_(compute())


def model_of(tmp_path, family="llama", dtype="float32", page=PAGE):
    return Model(ModelConfig(str(tiny_folder(tmp_path, family)), dtype=dtype, slots=1024, page=page))


@pytest.mark.parametrize(("family", "dtype", "page"), [("qwen3", "float32", 16), ("gemma2", "bfloat16", 4)])
def test_it_is_the_model_that_transformers_computes(tmp_path, family, dtype, page):
    model = model_of(tmp_path, family, dtype, page)
    assert choose().isa == "triton"
    assert model.pool.layers[0].dim() == 5


def test_graphs_give_the_models_logits_and_touch_nothing_else(tmp_path):
    model, rng = model_of(tmp_path), random.Random(3)
    graphs = DecodeGraphs(model._compute, again, model.pool, model.max_len, SIZES)
    for rows in (1, 3, 2, 5):
        inputs = step(rng, rows)
        filled(model, rows)
        theirs_BV = model.forward(inputs).clone()
        after = [layer.clone() for layer in model.pool.layers]
        filled(model, rows)
        ours_BV = graphs.play(inputs)
        torch.testing.assert_close(ours_BV, theirs_BV, rtol=1e-4, atol=1e-4 * float(theirs_BV.abs().max()))
        for ours, theirs in zip(model.pool.layers, after, strict=True):
            owned = len(ours) - PAGE  # all but the spare page
            torch.testing.assert_close(ours[:owned], theirs[:owned], rtol=1e-4, atol=1e-4)


def test_what_has_no_graph_is_left_to_the_model(tmp_path, caplog):
    model, rng = model_of(tmp_path), random.Random(1)
    graphs = DecodeGraphs(model._compute, again, model.pool, model.max_len, (1, 2))
    assert graphs.play(step(rng, 3)) is None
    some = step(rng, 2)
    wanted = StepInputs(*(getattr(some, name) for name in StepInputs.__slots__[:-1]), torch.tensor([1]))
    filled(model, 1)
    got = graphs.play(wanted)
    torch.testing.assert_close(got, model.forward(wanted), rtol=1e-4, atol=1e-4 * float(got.abs().max()))

    def refuse(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    none = DecodeGraphs(model._compute, refuse, model.pool, model.max_len, (1, 2))
    assert none.play(step(rng, 1)) is None
    assert "decode steps go without graphs: operation not permitted" in caplog.text


def test_a_step_arrives_whole_in_one_copy():
    inputs, here = step(random.Random(5), 4), torch.device("cpu")
    assert staged(inputs, PAGE, here) is inputs
    fields = [getattr(inputs, name) for name in StepInputs.__slots__]
    static = Static([torch.zeros_like(field) for field in fields], here)
    static.fill(fields)
    for got, want in zip(static.tensors, fields, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
        assert got.data_ptr() % 16 == 0
    tables = used_tables(inputs, PAGE)
    assert tables.shape == (4, -(-int(inputs.lens_R.max()) // PAGE))
    assert torch.equal(tables, inputs.tables_RP[inputs.rows_R.long(), : tables.shape[1]])


def test_what_the_bench_measures_on_a_gpu_runs(tmp_path, monkeypatch):
    """The work of bench/gpu.py, small and under the interpreter."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import gpu_attention
    import gpu_models

    for work in (gpu_attention.decode_work(3, 40, 2, "cpu"), gpu_attention.prefill_work(20, "cpu")):
        for turn in range(2):
            out, lse = work(turn)
            assert out.isfinite().all()
            assert lse.isfinite().all()
    one, two = (gpu_models.made(tiny_config("llama"), tmp_path / str(i), "cpu", 4, 32) for i in range(2))
    logits = one.forward(gpu_models.decode_step(4, 32))
    assert logits.shape == (4, one.vocab)
    for value, model in enumerate((one, two)):
        for layer in model.pool.layers:
            layer.fill_(value)
    gpu_models.mover(one, two)()
    assert all(float(layer.min()) == 0 for layer in two.pool.layers)
