"""Triton kernels without a GPU: their results under the interpreter, and that they compile for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import INTERPRETED

pytest.importorskip("triton", reason="needs the gpu extra")
HERE = Path(__file__).parent
SHARED_BYTES = 99 << 10
"""Of a program, on the smallest of GPUs since 2020."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if "model" in each else each for each in INTERPRETED]
)
def test_interpreted(name):
    """Triton reads its environment when it is imported, which in this process may have happened long ago."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / name)]
    env = os.environ | {"TRITON_INTERPRET": "1", "PLAIT_KERNELS": "triton"}
    done = subprocess.run(command, env=env, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles_for_gpus_and_fits_their_shared_memory(capability, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(HERE / "compile_triton.py"), capability]
    done = subprocess.run(
        command, env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shared = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in shared} == {
        *("split_kernel", "merge_kernel", "tile_kernel", "store_kernel"),
        *("norm_kernel", "gate_kernel", "rope_kernel"),
    }
    assert max(int(size) for _, size in shared) <= SHARED_BYTES


def test_cuda_tensors_go_to_triton():
    """In a process of its own, for a registration cannot be taken back."""
    code = (
        "import torch; from plait.kernels.triton import registered;"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key;"
        "print(all(has(f'plait::{name}', 'CUDA') for name in registered.BODIES), len(registered.BODIES))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "8"], done.stderr
