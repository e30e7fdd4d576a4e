"""Where the ranks of a trainer compute and how they talk: one word, the backend of torch.distributed."""

from enum import StrEnum

import torch

from plait.spec.errors import UserError


class Backend(StrEnum):
    """How ranks talk."""

    GLOO = "gloo"
    """CPUs; messages have tags."""
    NCCL = "nccl"
    """A GPU for each rank; messages have none: both ends of a pair post in the order of their programs."""


def device_of(backend: Backend, rank: int, ranks: int) -> torch.device:
    """Where a rank computes.

    Raises:
        UserError: there is no GPU for each rank of a host.
    """
    if backend is Backend.GLOO:
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if found < ranks:
        raise UserError(
            f"train.backend nccl needs a GPU for each of {ranks} ranks, and there are {found}: set "
            "train.backend to gloo, or have fewer ranks",
            "train.backend",
        )
    return torch.device("cuda", rank)
