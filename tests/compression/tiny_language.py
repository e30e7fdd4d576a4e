"""A tiny decoder with text to calibrate, choose and test with."""

from pathlib import Path

from plait.compression.language import DecoderConfig
from plait.compression.tasks.language import Language
from plait.compression.tasks.text import TextConfig
from tests.tiny import tiny_folder

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 4}
EVERYTHING = DecoderConfig(
    depths=(0.5, 0.25, 0.0), widths=(0.5, 0.25, 0.0), heads=(0.5, 0.0), kv_bits=(8.0, 16.0)
)


def tiny_language(root: Path, choice: DecoderConfig | None = None, **changes: object) -> Language:
    """A task below `root`; `family`, `target` and `compensate` may be given, the rest is of config.json."""
    told = {name: changes.pop(name) for name in ("target", "compensate") if name in changes}
    spread = {"initializer_range": 0.1, **SIZES, **changes}
    folder = tiny_folder(root, str(spread.pop("family", "llama")), **spread)
    texts = []
    for name, factor in (("calibration", 7), ("test", 11)):
        told_lines = [f"{n * factor % 97} apples and {n * n % 89} pears make a pie {n}." for n in range(300)]
        texts.append(root / f"{name}.txt")
        texts[-1].write_text("\n\n".join(told_lines))
    return Language(
        folder=folder,
        calibration=TextConfig((texts[0],), 2048, 128),
        validation=TextConfig((texts[0],), 256, 128, skip=2048),
        test=TextConfig((texts[1],), 256, 128),
        cache=root / "cache",
        choice=choice or DecoderConfig(),
        dtype="float32",
        **told,
    )
