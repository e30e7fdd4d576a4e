"""`Deployment`: one way to serve a model at a fixed number of requests in flight, and what physics says of
it.

`features` turns it into numbers that a learner can hold against measurements: how long weights, KV,
arithmetic and exchanges take on the data sheet, what a closed loop does where prefill or KV memory is the
bottleneck, and the plain sizes. No feature looks at a measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, log, log2

from plait.spec.errors import UserError

TINY = 1e-9
STEP_S, ENGINE = 5e-3, 1.5
"""A step is guessed at this many seconds beside this many times its roofline, where a queue needs one."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder with or without experts, in the terms of a roofline. Counts are parameters of all layers."""

    name: str
    layers: int
    hidden: int
    kv_values: float
    """KV values of one token over all layers."""
    attention: float
    dense: float
    """Dense FFN, shared experts and output head."""
    pair_flops: float
    """Attention FLOPs of one (query, key) pair over all layers."""
    latent: bool = False
    """KV is one latent vector (MLA), which tensor parallelism does not split."""
    experts: int = 0
    chosen: int = 0
    """Experts that a token visits."""
    expert: float = 0.0
    """Parameters of one expert over all layers."""
    expert_layers: int = 0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device's data sheet: dense bf16 FLOP/s, bytes/s of memory and of its links one way, bytes."""

    name: str
    flops: float
    bandwidth: float
    link: float
    memory_bytes: float
    fp4: float = 2.0
    """FLOP/s with 4-bit weights, in units of `flops`."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Equal workers of one phase: their number, and how the devices of one of them share a layer."""

    workers: int = 1
    tp: int = 1
    dp: int = 1
    """Replicas of attention inside a worker, each with its own requests."""
    expert_tp: int = 1
    ep: int = 1

    @property
    def devices(self) -> int:
        """Devices of one worker."""
        return max(self.tp * self.dp, self.expert_tp * self.ep)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Model, devices and layout, with the closed loop that measures them."""

    model: Decoder
    device: Accelerator
    precision: str
    """Of the weights: bf16, fp8, fp4 or int4."""
    engine: str
    version: float
    """The engine's release as one rising number; below 0 where it is not known."""
    prefill: Phase
    decode: Phase
    disaggregated: bool
    prompt_tokens: int
    output_tokens: int
    in_flight: int
    """Requests that the load generator keeps open."""
    workers_known: bool = True
    """False: the layout was recorded, the number of workers was not."""
    load_known: bool = True
    """False: `in_flight` is the engines' limit; how many there really were was not recorded."""


WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.56, "int4": 0.56}


def features(served: Deployment) -> dict[str, float]:
    """Logarithms of times (s) and sizes, and 0 or 1 for what is counted; equal keys for every deployment.

    Raises:
        UserError: the precision is none that is known.
    """
    if served.precision not in WEIGHT_BYTES:
        raise UserError(f"no precision {served.precision!r}; known are {', '.join(WEIGHT_BYTES)}")
    found = _sizes(served)
    one, many = _prefill(served)
    found |= {f"prefill_{name}": value for name, value in one.items()}
    one_s, each_s = _total(one), _total(many) / served.prefill.dp / served.prefill.workers
    step = _decode(served, served.in_flight)
    found |= {f"decode_{name}": value for name, value in step.items()}
    step_s = _total(step)
    found |= {
        "prefill_one": one_s,
        "prefill_each": each_s,
        "decode_step": step_s,
        "all_at_once": served.in_flight * each_s,
        "load": served.in_flight * each_s / (step_s * served.output_tokens),
        "with_prefill": step_s
        + (0 if served.disaggregated else served.in_flight * each_s / served.output_tokens),
    }
    found |= _closed_loop(served, one_s, each_s)
    found |= _memory(served, one_s, served.in_flight * each_s)
    return {name: log(max(value, TINY)) for name, value in found.items()} | _kinds(served)


def _sizes(served: Deployment) -> dict[str, float]:
    batch = served.in_flight / served.decode.workers
    found: dict[str, float] = {
        "in_flight": served.in_flight,
        "prompt": served.prompt_tokens,
        "output": served.output_tokens,
        "context": served.prompt_tokens + served.output_tokens / 2,
        "batch": batch / served.decode.dp,
        "batch_of_worker": batch,
    }
    for name, phase in (("prefill", served.prefill), ("decode", served.decode)):
        found |= {
            f"{name}_workers": phase.workers,
            f"{name}_devices": phase.devices,
            f"{name}_tp": phase.tp,
            f"{name}_dp": phase.dp,
            f"{name}_ep": phase.ep,
            f"{name}_expert_tp": phase.expert_tp,
        }
    return found


def _kinds(served: Deployment) -> dict[str, float]:
    model, device = served.model, served.device
    return {
        "version": served.version,
        "disaggregated": float(served.disaggregated),
        "workers_known": float(served.workers_known),
        "load_known": float(served.load_known),
        "trtllm": float(served.engine == "trtllm"),
        "sglang": float(served.engine == "sglang"),
        "bits": log(WEIGHT_BYTES[served.precision]),
        "device_flops": log(device.flops),
        "device_bandwidth": log(device.bandwidth),
        "device_memory": log(device.memory_bytes),
        "on_tray": float(device.name.startswith("gb")),
        "model_weights": log(_weights(model)),
        "model_layers": log(model.layers),
        "model_hidden": log(model.hidden),
        "model_kv": log(model.kv_values),
        "model_experts": float(model.experts),
        "model_latent": float(model.latent),
    }


def _weights(model: Decoder) -> float:
    return model.attention + model.dense + model.expert * model.experts


def _terms(served: Deployment, phase: Phase, tokens: float, keys: float, pairs: float) -> dict[str, float]:
    """Seconds of each part of one step of one worker.

    `tokens` of all its replicas, of which each attends to `keys` keys that are read for it alone, and to
    `pairs` keys in all.
    """
    model, device = served.model, served.device
    width = WEIGHT_BYTES[served.precision]
    speed = device.flops * {"bf16": 1.0, "int4": 1.0, "fp8": 2.0, "fp4": device.fp4}[served.precision]
    share, local = phase.expert_tp * phase.ep, tokens / phase.dp
    touched = 1 - (1 - model.chosen / model.experts) ** tokens if model.experts else 0.0
    message = local * model.hidden * 2
    wide = max(phase.tp, phase.expert_tp)
    arithmetic = (
        local * (model.attention + model.dense) / phase.tp + model.chosen * model.expert * tokens / share
    )
    return {
        "weights": (model.attention + model.dense) * width / phase.tp / device.bandwidth,
        "experts": model.expert * model.experts * touched * width / share / device.bandwidth,
        "kv": local * keys * model.kv_values / (1 if model.latent else phase.tp) / device.bandwidth,
        "flops": 2 * arithmetic / speed,
        "pairs": local * pairs * model.pair_flops / phase.tp / device.flops,
        "reduce": model.layers * 2 * message * (wide - 1) / wide / device.link,
        "scatter": model.expert_layers * 2 * message * min(model.chosen, phase.ep) / device.link
        if phase.ep > 1
        else 0,
    }


def _total(terms: Mapping[str, float]) -> float:
    linear = max(terms["weights"] + terms["experts"], terms["flops"])
    return linear + terms["kv"] + terms["pairs"] + terms["reduce"] + terms["scatter"]


def _prefill(served: Deployment) -> tuple[dict[str, float], dict[str, float]]:
    """One prompt alone in a worker, and one prompt on each of its replicas."""
    phase, length = served.prefill, served.prompt_tokens
    many = _terms(served, phase, length * phase.dp, 0, length / 2)
    alone = Phase(phase.workers, phase.tp, 1, phase.expert_tp, phase.ep)
    return _terms(served, alone, length, 0, length / 2), many


def _decode(served: Deployment, in_flight: float) -> dict[str, float]:
    context = served.prompt_tokens + served.output_tokens / 2
    batch = max(in_flight / served.decode.workers, 1.0)
    return _terms(served, served.decode, batch, context, context)


def _step_s(served: Deployment, in_flight: float) -> float:
    return _total(_decode(served, in_flight)) * ENGINE + STEP_S


def _closed_loop(served: Deployment, one_s: float, each_s: float) -> dict[str, float]:
    """Where prefill cannot keep up, only so many requests decode and the others wait for their prompt."""
    found: dict[str, float] = {}
    for name, share in (("slow", 0.2), ("fast", 0.5)):
        rate = share / each_s
        decoding = float(served.in_flight)
        if served.disaggregated and decoding / (_step_s(served, decoding) * served.output_tokens) > rate:
            low = 0.0
            for _ in range(30):
                middle = (low + decoding) / 2
                over = middle / (_step_s(served, middle) * served.output_tokens) > rate
                low, decoding = (low, middle) if over else (middle, decoding)
        step_s = _step_s(served, decoding)
        waiting_s = served.in_flight / rate - step_s * served.output_tokens if served.disaggregated else 0.0
        found |= {
            f"{name}_batch": decoding / served.decode.workers,
            f"{name}_step": step_s,
            f"{name}_wait": max(waiting_s, 0.0) + one_s / share,
            f"{name}_burst": served.in_flight / rate / 2 + one_s,
        }
    return found


def _memory(served: Deployment, one_s: float, burst_s: float) -> dict[str, float]:
    """Requests beyond a batch limit that is a power of two, or beyond KV memory, wait for others to end."""
    model, phase, device = served.model, served.decode, served.device
    batch = max(served.in_flight / phase.workers / phase.dp, 1.0)
    long_s = _step_s(served, served.in_flight) * served.output_tokens
    beyond = round(batch) / 2 ** floor(log2(round(batch))) - 1
    resident = model.expert * model.experts / (phase.ep * phase.expert_tp)
    resident += (model.attention + model.dense) / phase.tp
    free = max(device.memory_bytes * 0.88 - resident * WEIGHT_BYTES[served.precision], 1e9)
    found = {"beyond": 1 + beyond, "beyond_wait": beyond * long_s + 2 * one_s}
    for width in (1, 2):
        slots = free / (model.kv_values * width / (1 if model.latent else phase.tp))
        used = batch * (served.prompt_tokens + served.output_tokens / 2) / slots
        found |= {f"kv{width}_used": used, f"kv{width}_wait": max(used - 1, 0) * long_s + burst_s + 2 * one_s}
    return found
