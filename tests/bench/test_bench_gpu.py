"""What bench/gpu.py does without a GPU: it says so; and the limits that it would hold a GPU against."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the engine extra")
transformers = pytest.importorskip("transformers", reason="needs the engine extra")

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_limits

    return gpu_limits


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("options", [[], ["--quick", "--seed=3"]])
def test_without_a_gpu_it_says_so_and_writes_nothing(options):
    before = sorted((BENCH / "results").iterdir())
    command = [sys.executable, str(BENCH / "gpu.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No GPU was measured: ")
    assert len(done.stdout.splitlines()) == 1
    assert sorted((BENCH / "results").iterdir()) == before


def test_weights_read_are_those_of_the_models(limits):
    """Counted on the real module, which is made without memory."""
    for name, config in limits.configs().items():
        with torch.device("meta"):
            module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        read = sum(weight.nbytes for weight in module.parameters())
        if module.get_output_embeddings().weight is not module.get_input_embeddings().weight:
            read -= module.get_input_embeddings().weight.nbytes
        assert limits.weight_bytes_read(config) == pytest.approx(read, rel=1e-3), name


def test_the_roofline_is_bytes_over_bandwidth(limits):
    config = limits.configs()["Llama-3-8B"]
    weights = limits.decode_limit_s(config, 1, 0, 3.35e12)
    assert weights == pytest.approx(15.0e9 / 3.35e12, rel=0.01)
    kv_bytes_per_token = 2 * 32 * 8 * 128 * 2
    assert limits.decode_limit_s(config, 64, 1024, 3.35e12) - weights == pytest.approx(
        64 * 1024 * kv_bytes_per_token / 3.35e12
    )
    assert limits.attention_kv_bytes(1, 1) * 32 == kv_bytes_per_token
    assert limits.prefill_flops(1) == 4 * 32 * 128


def test_cases_fit_the_memory(limits):
    every = limits.decode_cases(False, 1 << 60)
    assert (1, 128) in every
    assert (256, 32768) in every
    some = limits.decode_cases(False, 1 << 30)
    assert some
    assert all(limits.attention_kv_bytes(*case) <= 1 << 30 for case in some)
    assert len(limits.decode_cases(True, 1 << 60)) < len(every)
