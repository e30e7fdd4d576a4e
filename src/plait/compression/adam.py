"""`Adam`: steps whose sizes adapt to each coordinate, with momentum (Kingma and Ba, arXiv 1412.6980)."""

import numpy as np

from plait.compression.space import Floats


class Adam:
    """Moments of one array's gradients."""

    def __init__(self, rate: float, momentum: float = 0.9, memory: float = 0.999) -> None:
        """`rate` is about the size of a step; `momentum` and `memory` are the decays of both moments."""
        self.rate, self.momentum, self.memory = rate, momentum, memory
        self.first = self.second = np.zeros(())
        self.steps = 0

    def step(self, gradient: Floats) -> Floats:
        """What to subtract to go down the gradient."""
        self.steps += 1
        self.first = self.momentum * self.first + (1 - self.momentum) * gradient
        self.second = self.memory * self.second + (1 - self.memory) * gradient**2
        first = self.first / (1 - self.momentum**self.steps)
        second = self.second / (1 - self.memory**self.steps)
        return self.rate * first / (np.sqrt(second) + 1e-8)
