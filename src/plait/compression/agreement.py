"""How far two orders agree."""

import numpy as np

from plait.compression.space import Floats


def kendall_tau(one_N: Floats, other_N: Floats) -> float:
    """Kendall's tau-b: pairs in the same order less pairs in opposite orders, corrected for ties.

    Zero where one of them is constant.
    """
    first_NN, second_NN = (np.sign(part_N[:, None] - part_N) for part_N in (one_N, other_N))
    untied = np.sqrt((first_NN**2).sum() * (second_NN**2).sum())
    return float((first_NN * second_NN).sum() / untied) if untied else 0.0
