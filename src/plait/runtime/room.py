"""How many KV slots fit the memory that is free."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from plait.spec.errors import UserError
from plait.spec.shape import ModelShape, int8_kv_bits

LONGEST = 16
"""Requests of the greatest length that a pool of default size has room for at most."""


def free_slots(
    shape: ModelShape, dtype: str, kv_dtype: str, device: str, instances: int, max_len: int, copies: int = 1
) -> int:
    """KV slots of each instance. They may take 40 % of a host's free memory, and of a GPU's all but a tenth
    and the weights; no more than `LONGEST` of the longest requests need.

    Args:
        copies: how often an instance keeps each key and value, in several processes.

    Raises:
        UserError: not one request fits, or free memory cannot be told.
    """
    bits = 16.0 if dtype == "bfloat16" else 32.0
    shape = stored_shape(shape, dtype, kv_dtype)
    if device == "cpu":
        room_bytes = 0.4 * _free_bytes() / instances / copies
    else:
        room_bytes = 0.9 * _free_gpu_bytes(device) / instances - shape.in_type(bits).weight_bytes
    slots = int(room_bytes / shape.kv_bytes_per_token)
    if slots < max_len:
        raise UserError(
            f"free memory holds {max(slots, 0)} KV tokens for each of {instances} instances, less than one "
            f"request of {max_len}: lower --max-model-len or --instances, or set --kv-tokens"
        )
    return min(slots, LONGEST * max_len)


def stored_shape(shape: ModelShape, dtype: str, kv_dtype: str) -> ModelShape:
    """The same with the bits that keys and values have in the pool."""
    if kv_dtype == "int8":
        return replace(shape, kv_bits=int8_kv_bits(shape.layers[0].head_dim))
    return replace(shape, kv_bits=16.0 if dtype == "bfloat16" else 32.0)


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise UserError("cannot tell how much memory is free here: set --kv-tokens")


def _free_gpu_bytes(device: str) -> int:
    """Asked of the driver's own tool: torch would take memory of the GPU for this process too."""
    command = shutil.which("nvidia-smi")
    if command is None:
        raise UserError(
            f"device is {device}, but there is no NVIDIA GPU here (no nvidia-smi): use --device cpu", "device"
        )
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or "").split(",")
    index = int(device.partition(":")[2] or 0)
    name = visible[index].strip() if index < len(visible) and visible[index] else str(index)
    ask = [command, f"--id={name}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode or not done.stdout.strip().isdigit():
        said = (done.stdout + done.stderr).strip()
        raise UserError(f"device is {device}, but nvidia-smi says: {said}; set --kv-tokens", "device")
    return int(done.stdout) << 20
