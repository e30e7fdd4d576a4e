"""What may be chosen for a decoder, and what it costs, to the byte."""

import numpy as np
import pytest

from plait.compression.language import DecoderConfig, Storage, open_decoder, space_of
from plait.compression.language_cost import kv_bytes, weight_bytes
from plait.compression.targets import TARGETS
from plait.spec.errors import Unsupported, UserError
from plait.spec.policy import Knob
from tests.compression.tiny_language import EVERYTHING, SIZES, tiny_language
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny_language(tmp_path_factory.mktemp("space"), EVERYTHING, target="simulated").open()


def test_bytes_are_those_of_the_pieces(reader):
    """Codes, scales and what is left at 16 bits, of blocks that stay; widths and heads really cut."""
    decoder, space = reader.decoder, reader.task.space
    cost = weight_bytes(space, decoder, Storage(64), reader.carver.order)
    for index_D in [*space.sample(np.random.default_rng(0), 20), space.count_D - 1]:
        plan, real = reader.carver.plan(space.decode(index_D)), 2 * decoder.rest
        for linear in (x for x in decoder.linears if x.block in plan.alive):
            rounded = reader.carver.quantised(linear, plan)
            real += rounded.codes_NI.numel() * rounded.scheme.bits / 8 + 2 * rounded.scales_NG.numel()
        assert cost(space.z_of(index_D)[None])[0][0] == pytest.approx(real, rel=1e-12)


def test_kv_bytes_count_heads_and_their_scales(reader):
    space = reader.task.space
    cost = kv_bytes(space, reader.decoder, reader.carver.order)
    whole, least = cost(np.stack([np.ones(len(space)), np.zeros(len(space))]))[0]
    assert whole == 4 * 2 * 2 * 32 * 2
    assert least == 2 * 2 * 1 * (32 + 4)


def test_costs_have_the_gradients_of_their_differences(reader):
    space, rng = reader.task.space, np.random.default_rng(1)
    for cost in (
        weight_bytes(space, reader.decoder, Storage(64), reader.carver.order),
        kv_bytes(space, reader.decoder, reader.carver.order),
    ):
        z_BD = rng.uniform(0.01, 0.99, (20, len(space)))
        _, slope_BD = cost(z_BD)
        for gene in range(len(space)):
            step_D = 1e-7 * np.eye(len(space))[gene]
            apart_B = (cost(z_BD + step_D)[0] - cost(z_BD - step_D)[0]) / 2e-7
            assert slope_BD[:, gene] == pytest.approx(apart_B, rel=1e-4, abs=1)


def test_targets_tie_what_they_compute_at_once(tmp_path):
    decoder = open_decoder(tiny_folder(tmp_path, **SIZES))
    count = {
        name: len(space_of(decoder, EVERYTHING, target).genes)
        for name, target in TARGETS.items()
        if name in ("plait", "simulated")
    }
    # Depth; for each block its width, heads, the bits of seven layers and of KV. Where siblings are fused
    # four layers have bits, and all blocks have equal heads and KV bits.
    assert count == {"plait": 1 + 4 * (1 + 4) + 2, "simulated": 1 + 4 * (2 + 7 + 1)}
    space = space_of(decoder, DecoderConfig(widths=(0.5, 0.0), heads=(0.5, 0.0)), TARGETS["transformers"])
    assert sum(gene.knob is Knob.PRUNE for gene in space.genes) == 2


def test_what_cannot_be_loaded_is_refused_before_the_search(tmp_path):
    decoder = open_decoder(tiny_folder(tmp_path, hidden_size=64, intermediate_size=160))
    with pytest.raises(UserError, match=r"groups of 64 do not divide the 160 inputs .*down_proj: choose 32"):
        space_of(decoder, DecoderConfig(), TARGETS["plait"])
    space_of(decoder, DecoderConfig(group=32), TARGETS["plait"])
    with pytest.raises(UserError, match="group is 48; for plait choose 32 or 64 or 128"):
        space_of(decoder, DecoderConfig(group=48), TARGETS["plait"])
    with pytest.raises(UserError, match=r"no kernel for .* at weight_bits"):
        space_of(decoder, DecoderConfig(bits=(5.0, 6.0)), TARGETS["vllm"])
    with pytest.raises(UserError, match=r"no kernel for .* at kv_bits"):
        space_of(decoder, DecoderConfig(bits=(8.0,), kv_bits=(4.0,)), TARGETS["plait"])
    with pytest.raises(UserError, match="nothing is left to choose"):
        space_of(decoder, DecoderConfig(bits=(8.0,)), TARGETS["plait"])


def test_other_decoders_have_bits_and_depth_only(tmp_path):
    decoder = open_decoder(tiny_folder(tmp_path, "opt"))
    assert not decoder.prunable
    with pytest.raises(Unsupported, match="cut in Llama-like blocks only"):
        space_of(decoder, DecoderConfig(group=32, widths=(0.5, 0.0)), TARGETS["plait"])
    space = space_of(decoder, DecoderConfig(group=32, depths=(0.5, 0.0)), TARGETS["plait"])
    assert [gene.knob for gene in space.genes] == [Knob.PRUNE] + 8 * [Knob.WEIGHT_BITS]
    with pytest.raises(Unsupported, match="plain blocks"):
        open_decoder(tiny_folder(tmp_path, "qwen3_moe"))
