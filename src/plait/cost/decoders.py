"""Large decoders and accelerators, as `Deployment` names them.

Sizes are those of each model's published config.json; speeds are vendors' data sheets (dense). GB200 and
GB300 are the devices of NVLink racks.
"""

from collections.abc import Mapping
from types import MappingProxyType

from plait.cost.deployment import Accelerator, Decoder


def _grouped(hidden: int, heads: int, kv_heads: int, width: int) -> float:
    """Parameters of one layer of attention with grouped queries."""
    return hidden * width * (2 * heads + 2 * kv_heads)


def _dense(name: str, layers: int, hidden: int, ffn: int, heads: tuple[int, int, int], vocab: int) -> Decoder:
    """`heads`: query heads, KV heads, width of a head."""
    query, kv, width = heads
    return Decoder(
        name,
        layers,
        hidden,
        kv_values=2 * kv * width * layers,
        attention=_grouped(hidden, query, kv, width) * layers,
        dense=3 * hidden * ffn * layers + vocab * hidden,
        pair_flops=4 * query * width * layers,
    )


def _experts(
    name: str, layers: int, hidden: int, heads: tuple[int, int, int], vocab: int, **experts: int
) -> Decoder:
    """Experts in every layer; `experts`: how many, how many a token visits, their width, that of shared ones,
    and in how many layers attention is full (linear attention elsewhere keeps no KV)."""
    query, kv, width = heads
    full = experts.get("full", layers)
    return Decoder(
        name,
        layers,
        hidden,
        kv_values=2 * kv * width * full,
        attention=_grouped(hidden, query, kv, width) * layers,
        dense=3 * hidden * experts.get("shared", 0) * layers + vocab * hidden,
        pair_flops=4 * query * width * full,
        experts=experts["count"],
        chosen=experts["chosen"],
        expert=3 * hidden * experts["width"] * layers,
        expert_layers=layers,
    )


def _latent(name: str, layers: int, hidden: int, heads: int, vocab: int, experts: int, plain: int) -> Decoder:
    """DeepSeek-V3's form: latent attention (512 + 64 values a token), 8 of `experts` of width 2,048, one
    shared, and `plain` first layers with a dense FFN."""
    attention = hidden * 1536 + 1536 * heads * 192 + hidden * 576 + 512 * heads * 256 + heads * 128 * hidden
    ffn = 18432 if hidden == 7168 else 12288
    moe = layers - plain
    return Decoder(
        name,
        layers,
        hidden,
        kv_values=576 * layers,
        attention=attention * layers,
        dense=3 * hidden * (ffn * plain + 2048 * moe) + vocab * hidden,
        pair_flops=4 * heads * 160 * layers,
        latent=True,
        experts=experts,
        chosen=8,
        expert=3 * hidden * 2048 * moe,
        expert_layers=moe,
    )


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        each.name: each
        for each in (
            _latent("DeepSeek-V3", 61, 7168, 128, 129280, 256, 3),
            _latent("Kimi-K2.5", 61, 7168, 64, 163840, 384, 1),
            _latent("GLM-5", 78, 6144, 64, 154880, 256, 3),
            _experts("gpt-oss-120b", 36, 2880, (64, 8, 64), 201088, count=128, chosen=4, width=2880),
            _experts("MiniMax-M2.5", 62, 3072, (48, 8, 128), 200064, count=256, chosen=8, width=1536),
            _experts(
                "Qwen3.5-397B-A17B", 60, 4096, (32, 2, 256), 248320,
                count=512, chosen=10, width=1024, shared=1024, full=15,
            ),
            _experts("Qwen3-235B-A22B", 94, 4096, (64, 4, 128), 151936, count=128, chosen=8, width=1536),
            _dense("Qwen3-32B", 64, 5120, 25600, (64, 8, 128), 151936),
            _dense("Llama-3.1-70B", 80, 8192, 28672, (64, 8, 128), 128256),
            _dense("Llama-3.1-8B", 32, 4096, 14336, (32, 8, 128), 128256),
        )
    }
)  # fmt: skip

ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {
        each.name: each
        for each in (
            Accelerator("h100_sxm", 989e12, 3.35e12, 450e9, 80e9),
            Accelerator("h200_sxm", 989e12, 4.8e12, 450e9, 141e9),
            Accelerator("b200_sxm", 2250e12, 7.7e12, 900e9, 180e9, fp4=4.0),
            Accelerator("gb200", 2450e12, 8e12, 900e9, 186e9, fp4=4.0),
            Accelerator("b300_sxm", 2250e12, 7.7e12, 900e9, 268e9, fp4=6.0),
            Accelerator("gb300", 2450e12, 8e12, 900e9, 279e9, fp4=6.0),
        )
    }
)
