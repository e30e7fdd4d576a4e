"""Weights that are kept in fewer bits count with those, scales and all."""

from dataclasses import replace

import pytest

from plait.cost.catalog import CONFIGS
from plait.spec.errors import Unsupported
from plait.spec.shape import ModelShape

PLAIN = CONFIGS["smollm2-135m"]
TABLE = 49152 * 576
LINEAR = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536)


def quantised(ignore=("lm_head",), **groups):
    """config.json of the same model with these targets, each (bits, group)."""
    told = {
        f"group_{number}": {
            "targets": list(targets),
            "weights": {
                "num_bits": bits,
                "strategy": "group" if group else "channel",
                "group_size": group,
            },
        }
        for number, (targets, bits, group) in enumerate(groups.values())
    }
    whole = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return {**PLAIN, "quantization_config": whole | {"ignore": list(ignore), "config_groups": told}}


def test_what_is_not_quantised_has_16_bits_and_32_as_float32():
    shape = ModelShape.from_config(PLAIN)
    assert shape.parameters == TABLE + LINEAR
    assert shape.weight_bytes == 2 * shape.parameters == shape.step_bytes
    assert shape.in_type(32).weight_bytes == 4 * shape.parameters
    assert ModelShape.from_config(PLAIN, bits=32, kv_bits=32).weight_bytes == 4 * shape.parameters


@pytest.mark.parametrize(
    ("bits", "group", "held"), [(4, 64, 4.25), (3, 128, 4.125), (8, None, 8.0), (5, None, 8.0)]
)
def test_bits_are_those_in_which_the_engine_keeps_them(bits, group, held):
    shape = ModelShape.from_config(quantised(all=(["Linear"], bits, group)))
    scales = 0 if group else 30 * 2 * (576 + 2 * 192 + 576 + 2 * 1536 + 576)
    assert shape.weight_bytes == 2 * TABLE + LINEAR * held / 8 + scales
    assert shape.in_type(32).weight_bytes == shape.weight_bytes + 2 * TABLE


def test_layers_by_name_and_what_is_ignored():
    told = quantised(
        ("lm_head", "re:.*down_proj"),
        some=(["model.layers.3.mlp.up_proj"], 4, 64),
        more=([r"re:model\.layers\.(3|4)\.mlp\.(gate|up|down)_proj"], 8, None),
    )
    layers, part = ModelShape.from_config(told).layers, 576 * 1536
    plain, whole = layers[0].bits, layers[0].weights
    assert plain == 16
    assert layers[3].bits == pytest.approx((16 * (whole - 2 * part) + part * (4.25 + 8 + 16 / 576)) / whole)
    assert layers[4].bits == pytest.approx((16 * (whole - 2 * part) + 2 * part * (8 + 16 / 576)) / whole)
    assert layers[3].dense == layers[4].dense == pytest.approx(1 - 2 * part / whole)


def test_a_head_of_its_own_is_counted_and_a_tied_one_is_the_embedding():
    told = quantised((), all=(["Linear"], 8, None))
    tied, untied = (
        ModelShape.from_config(told),
        ModelShape.from_config({**told, "tie_word_embeddings": False}),
    )
    assert tied.head_bits == 16
    assert untied.head_bits == 8 + 16 / 576
    assert untied.weight_bytes - tied.weight_bytes == round(TABLE * untied.head_bits / 8)
    assert untied.in_type(32).head_bits == untied.head_bits


def test_widths_of_layers_and_keys_of_8_bits():
    widths = [{"intermediate_size": 512 if n % 2 else 1024} for n in range(30)]
    shape = ModelShape.from_config({**PLAIN, "plait_layers": widths, "plait_kv_dtype": "int8"})
    assert [layer.ffn for layer in shape.layers[:2]] == [1024, 512]
    assert shape.kv_bits == 8 + 32 / 64
    plain = replace(shape, kv_bits=16.0)
    assert shape.kv_bytes_per_token == plain.kv_bytes_per_token * 8.5 / 16


def test_a_quantisation_that_is_not_read_is_refused_by_name():
    with pytest.raises(Unsupported, match="quant_method"):
        ModelShape.from_config({**PLAIN, "quantization_config": {"quant_method": "gptq"}})
