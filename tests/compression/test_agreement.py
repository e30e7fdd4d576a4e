"""Kendall's tau against counting pairs by hand."""

import numpy as np
import pytest

from plait.compression.agreement import kendall_tau


def test_tau_of_known_orders():
    rising = np.arange(6.0)
    assert kendall_tau(rising, rising**3) == pytest.approx(1)
    assert kendall_tau(rising, -rising) == pytest.approx(-1)
    assert kendall_tau(rising, np.zeros(6)) == 0
    # Of six pairs five agree and one does not.
    assert kendall_tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)
    # One tie in the second: five pairs are left of it, all agree; 5 / sqrt(6 * 5).
    assert kendall_tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 2, 3])) == pytest.approx(5 / np.sqrt(30))
