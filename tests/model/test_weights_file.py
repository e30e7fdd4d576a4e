"""Files of weights: whole or not there, also where the disk is full."""

import resource
from contextlib import contextmanager

import pytest
import torch

from plait.model.weights_file import checksum, read, write
from plait.spec.errors import UserError


@contextmanager
def room(most_bytes: int):
    """No file of this process may grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there_and_says_what_to_do(tmp_path):
    path = tmp_path / "run" / "weights.safetensors"
    old, new = {"w": torch.ones(100)}, {"w": torch.zeros(100_000)}
    kept = write(path, old)
    with room(1000), pytest.raises(UserError, match=r"weights.safetensors cannot be written .*make room"):
        write(path, new)
    assert checksum(read(path)) == kept
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert write(path, new) == checksum(new)
