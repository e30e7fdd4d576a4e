"""`--device`: refused with a sentence where there is no such device, and the memory of one that is."""

import os
import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs the engine extra")

from plait.kernels.choice import choose  # noqa: E402
from plait.model.config import ModelConfig  # noqa: E402
from plait.model.model import Model  # noqa: E402
from plait.runtime.room import LONGEST  # noqa: E402
from plait.runtime.setup import ServeConfig, open_engine  # noqa: E402
from plait.spec.errors import Unsupported, UserError  # noqa: E402

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
SAYS_FREE = """#!/bin/sh
test "$1" = "--id={name}" && echo {free_mib} || {{ echo "No devices were found"; exit 6; }}
"""


def nvidia_smi(folder, monkeypatch, name, free_mib):
    """What the driver's tool would answer for one GPU."""
    path = folder / "nvidia-smi"
    path.write_text(SAYS_FREE.format(name=name, free_mib=free_mib))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@without_gpu
def test_a_model_says_why_it_cannot_be_on_a_gpu(tiny_llama):
    reason = "built for CPUs only" if torch.version.cuda is None else "finds 0 GPUs"
    with pytest.raises(UserError, match=reason) as error:
        Model(ModelConfig(str(tiny_llama), device="cuda"))
    assert error.value.param == "device"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "mps"])
def test_devices_are_spelled_as_torch_spells_them(device, tiny_llama):
    with pytest.raises(UserError, match="choose cpu, cuda or cuda:N"):
        choose(device)
    with pytest.raises(UserError, match="choose cpu, cuda or cuda:N"):
        open_engine(ServeConfig(str(tiny_llama), device=device))


def test_exact_is_for_the_cpu(tiny_llama):
    with pytest.raises(Unsupported, match="exact mode is for cpu only"):
        Model(ModelConfig(str(tiny_llama), device="cuda", exact=True))


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_serving_on_a_gpu_that_is_not_there_is_refused_at_once(tiny_llama):
    with pytest.raises(UserError, match="no NVIDIA GPU here"):
        open_engine(ServeConfig(str(tiny_llama), device="cuda"))


def test_the_pool_fits_the_gpus_free_memory(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    nvidia_smi(tmp_path, monkeypatch, "GPU-5", 1)
    for max_len, most in ((64, LONGEST * 64), (512, (9 << 20) // 10 // 256)):  # 256 bytes a token in bf16
        engine = open_engine(ServeConfig(str(tiny_llama), device="cuda:1", max_len=max_len))
        model = engine.fleet._model
        assert model.device == "cuda:1"
        assert most // 2 < model.slots <= most
    with pytest.raises(UserError, match="No devices were found; set --kv-tokens"):
        open_engine(ServeConfig(str(tiny_llama), device="cuda:0"))
