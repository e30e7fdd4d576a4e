"""Policies carried out on decoders: rounded, cut, and made up for."""

import math

import numpy as np
import pytest
import torch

from plait.compression.calibration import Calibration
from plait.compression.evaluator import Fidelity
from plait.compression.gptq import Rounding, compensated, nearest
from plait.compression.kv_rounding import rounded
from plait.compression.language import DecoderConfig, Storage
from plait.compression.language_features import error_config
from plait.model import check
from plait.model.config import ModelConfig
from plait.model.model import Model
from plait.spec.errors import UserError
from plait.spec.policy import Choice, CompressionPolicy
from tests.compression.tiny_language import EVERYTHING, tiny_language

L0 = Fidelity.L0


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny_language(tmp_path_factory.mktemp("apply"), EVERYTHING, target="simulated").open()


def policy(**units: Choice) -> CompressionPolicy:
    return CompressionPolicy(tuple((name.replace("__", "."), choice) for name, choice in units.items()))


def bits(reader, count: float) -> CompressionPolicy:
    return CompressionPolicy(tuple((x.name, Choice(weight_bits=count)) for x in reader.decoder.linears))


@pytest.mark.parametrize("count", [2, 3, 4, 6, 8])
def test_making_up_for_errors_brings_outputs_nearer(count):
    torch.manual_seed(count)
    x_TI = torch.randn(500, 128) @ torch.randn(128, 128) * torch.rand(128)
    weight_NI, moments_II = torch.randn(40, 128), x_TI.T @ x_TI / 500
    work = Rounding(weight_NI, Storage(64).scheme(count))
    plain, (made,) = nearest(work, moments_II), compensated([work], moments_II)
    half = 2 ** (count - 1)
    assert made.codes_NI.min() >= -half
    assert int(made.codes_NI.max()) < half
    assert torch.equal(made.scales_NG, plain.scales_NG)
    error = [((each.dense(torch.float32) - weight_NI) @ x_TI.T).norm() for each in (made, plain)]
    assert error[0] < 0.85 * error[1]
    assert (plain.dense(torch.float32) - weight_NI).abs().max() <= 0.75 * weight_NI.abs().max()


def test_layers_are_rounded_together_as_each_by_itself():
    torch.manual_seed(0)
    moments_II = torch.diag(torch.rand(64) + 0.1)
    work = [Rounding(torch.randn(5, 64), Storage(32).scheme(bits)) for bits in (2, 4, 8)]
    for one, (alone,) in zip(
        compensated(work, moments_II), (compensated([each], moments_II) for each in work), strict=True
    ):
        assert torch.equal(one.codes_NI, alone.codes_NI)
        assert torch.equal(one.scales_NG, alone.scales_NG)


def test_a_policy_that_changes_nothing_is_the_reference(reader):
    found = reader.measure(CompressionPolicy(()), L0, 0)
    assert found["kl"] < 1e-6
    assert found["score"] == pytest.approx(-math.log(1e-6))
    with pytest.raises(UserError, match="fidelity L0"):
        reader.measure(CompressionPolicy(()), Fidelity.L1, 0)


def test_fewer_bits_are_further_away_and_estimates_know_how_far(reader):
    found = [reader.measure(bits(reader, count), L0, 0)["kl"] for count in (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)]
    assert found == sorted(found, reverse=True)
    for count, real in zip((5.0, 6.0), found[3:5], strict=True):
        told = sum(reader.carver.bits_error(x, count) for x in reader.decoder.linears)
        assert real / 3 < told < 3 * real


def test_what_is_cut_is_made_up_for_in_the_least_squares(reader):
    down = next(x for x in reader.decoder.linears if x.kind == "down_proj")
    weight_NK, kept_K = reader.carver.cut(down.name, 128)
    moments_II = reader.carver.calibration.moments[down.name]
    whole_NI = reader.reference.get_submodule(down.name).weight
    dropped_NI = torch.zeros_like(whole_NI)
    dropped_NI[:, kept_K] = whole_NI[:, kept_K]
    made_NI = torch.zeros_like(whole_NI)
    made_NI[:, kept_K] = weight_NK

    def lost(weight_NI):
        delta_NI = weight_NI - whole_NI
        return float(((delta_NI @ moments_II) * delta_NI).sum())

    assert lost(made_NI) < lost(dropped_NI)
    # No small change of the kept weights does better.
    slope_NI = 2 * (made_NI - whole_NI) @ moments_II
    assert float(slope_NI[:, kept_K].norm()) < 0.05 * float(slope_NI.norm())


def test_blocks_heads_and_channels_are_really_gone(reader):
    module = reader.carver.build(
        policy(
            model__layers=Choice(prune=0.25),
            model__layers__0__mlp=Choice(prune=0.5),
            model__layers__0__self_attn=Choice(prune=0.5),
            model__layers__1__mlp=Choice(prune=0.25),
        )
    )
    assert len(module.model.layers) == 3
    alive = reader.carver.plan(policy(model__layers=Choice(prune=0.25))).alive
    assert reader.carver.order[0] not in alive
    sizes = {b: module.model.layers[p].mlp.down_proj.weight.shape[1] for p, b in enumerate(alive)}
    wanted = {0: 128, 1: 192, 2: 256, 3: 256}
    assert sizes == {block: wanted[block] for block in alive}
    if 0 in alive:
        attention = module.model.layers[0].self_attn
        shapes = [tuple(getattr(attention, f"{n}_proj").weight.shape) for n in "qkvo"]
        assert shapes == [(64, 128), (32, 128), (32, 128), (128, 64)]
    ids_T = torch.arange(20)
    assert module(ids_T[None]).logits.isfinite().all()
    whole = reader.carver.build(CompressionPolicy(()))
    theirs_TV = reader.reference(ids_T[None]).logits
    assert torch.equal(whole(ids_T[None]).logits, theirs_TV)


def test_biases_go_with_their_rows(tmp_path):
    choice = DecoderConfig(bits=(16.0,), heads=(0.5, 0.0))
    reader = tiny_language(tmp_path, choice, target="transformers", family="qwen2").open()
    module = reader.carver.build(reader.task.space.decode(np.zeros(1, dtype=np.int64)))
    attention = module.model.layers[0].self_attn
    assert [len(getattr(attention, f"{n}_proj").bias) for n in "qkv"] == [64, 32, 32]
    assert module(torch.arange(20)[None]).logits.isfinite().all()


def test_keys_and_values_are_rounded_as_in_the_engine(tmp_path):
    """Distances from exact keys and values are alike; the engine's own logits are nearer to ours."""
    reader = tiny_language(tmp_path, DecoderConfig(kv_bits=(8.0, 16.0)), target="simulated").open()
    told = CompressionPolicy(
        tuple((reader.decoder.attention(b), Choice(kv_bits=8.0)) for b in range(reader.decoder.count))
    )
    ids_T = torch.arange(40) * 37 % 256
    ours_TV = reader.carver.build(told)(ids_T[None]).logits[0]
    model = Model(ModelConfig(str(reader.task.folder), dtype="float32", kv_dtype="int8", slots=256, page=16))
    engine_TV = model.forward(check.cut(ids_T, [(0, 0, 40)], 16))
    exact_TV = reader.reference(ids_T[None]).logits[0]
    assert float((ours_TV - engine_TV).norm()) < 0.1 * float((ours_TV - exact_TV).norm())
    x = torch.randn(3, 5, 8)
    assert (rounded(x, 8) - x).abs().amax() <= x.abs().amax() / 254 * 1.001


def test_calibration_is_kept_and_read_back(reader):
    (path,) = reader.task.cache.glob("calibration-*.safetensors")
    again = Calibration.load(path, reader.decoder)
    for kind in ("moments", "slopes", "lost", "change"):
        mine, theirs = getattr(reader.carver.calibration, kind), getattr(again, kind)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for linear in reader.decoder.linears[:5]:
        reader.carver.bits_error(linear, 3.0)
    kept = {path: path.stat().st_mtime_ns for path in reader.task.cache.glob("rounded-*/*")}
    other = reader.task.open().carver
    for linear in reader.decoder.linears[:5]:
        assert other.bits_error(linear, 3.0) == reader.carver.bits_error(linear, 3.0)
    assert {path: path.stat().st_mtime_ns for path in reader.task.cache.glob("rounded-*/*")} == kept
    assert kept
    first = reader.decoder.attention(0)
    assert again.moments[f"{first}.q_proj"] is again.moments[f"{first}.v_proj"]


def test_errors_fall_with_the_level_of_every_gene(reader):
    space = reader.task.space
    config = error_config(space, reader.carver)
    for gene, row in zip(space.genes, config.errors, strict=True):
        assert list(row) == sorted(row, reverse=True), gene.name
    features = config.of(space)
    rng = np.random.default_rng(0)
    z_BD = rng.uniform(0.01, 0.99, (5, len(space)))
    count = features(z_BD).shape[1]
    assert len(features.groups) == count
    slope_FBD = features.pull(z_BD, np.eye(count)[:, None, :].repeat(5, 1))
    for gene in range(len(space)):
        step_D = 1e-6 * np.eye(len(space))[gene]
        apart_BF = (features(z_BD + step_D) - features(z_BD - step_D)) / 2e-6
        np.testing.assert_allclose(slope_FBD[:, :, gene].T, apart_BF, rtol=1e-3, atol=1e-4)
