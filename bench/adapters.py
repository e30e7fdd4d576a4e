"""What rows with LoRA adapters cost a step, and that the others pay nothing for adapters that are loaded.

Steps of SmolLM2-135M in bf16 on one thread, by the model alone; adapters of rank 16 on all its layers. Kinds
of steps take turns, so that whatever else the machine does meets them all; times are medians of the turns.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import claim
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.model import check
from plait.model.config import ModelConfig
from plait.model.hub import resolve
from plait.model.inputs import Adapted, StepInputs
from plait.model.lora_folder import CONFIG, WEIGHTS, digest_of, files_of
from plait.model.model import Model
from plait.spec.adapter import Adapter

MODEL, DTYPE, PAGE = "smollm2-135m", "bfloat16", 16
ADAPTERS, RANK = 4, 16
CONTEXT, PROMPT = 64, 512
"""Tokens that each row of a decode step attends to, and tokens of a prompt."""
ROWS = (1, 32)
FREE_BAR = 1.05
"""A step without adapters, with some loaded, in times of what it takes with none."""
Step = Callable[[], Tensor]


def write(module: nn.Module, folder: Path, seed: int) -> Adapter:
    """An adapter of random factors on every layer but the head."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and part is not module.get_output_embeddings():
            for half, shape in (("A", (RANK, part.in_features)), ("B", (part.out_features, RANK))):
                drawn = torch.randn(shape, generator=generator) / 50
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = drawn
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    return Adapter(seed, str(folder), digest_of(*files_of(folder)))


def decode(rows: int) -> StepInputs:
    """One token of each of so many rows."""
    pages = CONTEXT // PAGE
    tables_RP = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
    return StepInputs(
        tokens_T=torch.arange(rows) + 50,
        positions_T=torch.full((rows,), CONTEXT - 1),
        slots_T=tables_RP[:, -1] * PAGE + PAGE - 1,
        starts_R=torch.arange(rows + 1, dtype=torch.int32),
        lens_R=torch.full((rows,), CONTEXT, dtype=torch.int32),
        rows_R=torch.arange(rows, dtype=torch.int32),
        tables_RP=tables_RP,
        wanted_L=torch.arange(rows),
    )


def kinds(model: Model) -> dict[str, Step]:
    """Steps by what they are called."""
    found: dict[str, Step] = {}
    for rows in ROWS:
        inputs, ones_R = decode(rows), np.ones(rows, np.int64)
        mixtures = {"no adapter": ones_R * 0, "one": ones_R, "four": np.arange(rows) % ADAPTERS + 1}
        for words, numbers_R in mixtures.items():
            if rows > 1 or words != "four":
                adapted = Adapted.of_rows(numbers_R, ones_R)
                found[f"decode {rows}, {words}"] = lambda i=inputs, a=adapted: model.forward(i, a)
    inputs = check.cut(torch.arange(PROMPT) % 1000, [(0, 0, PROMPT)], PAGE)
    for words, number in (("no adapter", 0), ("one", 1)):
        adapted = Adapted.of_rows(np.array([number]), np.array([PROMPT]))
        found[f"prompt of {PROMPT}, {words}"] = lambda i=inputs, a=adapted: model.forward(i, a)
    return found


def timed(steps: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """Milliseconds of each kind, turn by turn."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns + 1):  # the first warms up
        for name, step in steps.items():
            began_s = time.perf_counter()
            step()
            found[name].append((time.perf_counter() - began_s) * 1e3)
    return {name: times_ms[1:] for name, times_ms in found.items()}


def main() -> None:
    """Two models: one has adapters."""
    options = claim.arguments(__doc__)
    folder = str(resolve(MODEL))
    bare, model = (Model(ModelConfig(folder, dtype=DTYPE, slots=4096, page=PAGE)) for _ in range(2))
    for each in (bare, model):
        for kv in each.pool.layers:  # what nobody wrote may be no numbers
            kv.zero_()
    with tempfile.TemporaryDirectory() as root:
        for number in range(1, ADAPTERS + 1):
            model.adapters.load(write(model.module, Path(root) / str(number), number))
    torch.set_num_threads(model.threads_of_torch)
    plain = {
        f"{name}, none loaded": step for name, step in kinds(bare).items() if name.endswith("no adapter")
    }
    times_ms = timed(plain | kinds(model), 9 if options.quick else 60)
    found = {name: median(each) for name, each in times_ms.items()}
    parts = [
        claim.at_most(f"{name} with some loaded, over none loaded", found[name] / found[free], FREE_BAR)
        for free in plain
        if (name := free.removesuffix(", none loaded"))
    ]
    parts += [claim.reported(f"{name}, ms", found[name], (min(e), max(e))) for name, e in times_ms.items()]
    claim.finish("adapters", claim.together("rows without adapters pay nothing for them", parts), options)


if __name__ == "__main__":
    main()
