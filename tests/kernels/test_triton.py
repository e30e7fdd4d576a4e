"""Triton kernels without a GPU: their results under the interpreter, and that they compile for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import INTERPRETED

pytest.importorskip("triton", reason="needs the gpu extra")
HERE = Path(__file__).parent


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted(name):
    """Triton reads its environment when it is imported, which in this process may have happened long ago."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / name)]
    env = os.environ | {"TRITON_INTERPRET": "1", "PLAIT_KERNELS": "triton"}
    done = subprocess.run(command, env=env, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
