"""Cases of arrays in an .npz file: array `name` of case 3 is `3/name`."""

import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Case = Mapping[str, Tensor]


def read(path: str) -> list[dict[str, Tensor]]:
    """The cases of a file in their order."""
    found: dict[int, dict[str, Tensor]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            number, name = key.split("/", 1)
            found.setdefault(int(number), {})[name] = torch.from_numpy(file[key])
    return [found[number] for number in sorted(found)]


def keyed(cases: list[Case]) -> dict[str, NDArray[np.float64]]:
    """Arrays by the keys of a file."""
    return {
        f"{number}/{name}": torch.as_tensor(values).detach().numpy()
        for number, case in enumerate(cases)
        for name, values in case.items()
    }


def answer(compute: Callable[[Case], Case]) -> None:
    """The program of a peer: reads the cases of its first argument and writes the answers to its second."""
    np.savez_compressed(sys.argv[2], **keyed([compute(case) for case in read(sys.argv[1])]))
