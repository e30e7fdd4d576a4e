"""Objectives are read exactly or refused."""

import pytest

from plait.spec.errors import UserError
from plait.spec.slo import Slo


def test_objectives_are_read_with_their_units():
    assert Slo.parse("ttft=200ms,tpot=50ms") == Slo(200_000_000, 50_000_000)
    assert Slo.parse("tpot=1500us,ttft=1.5s") == Slo(1_500_000_000, 1_500_000)


@pytest.mark.parametrize(
    "text", ["", "ttft=1s", "ttft=1s,tpot=2", "ttft=1s,tpot=xms", "ttft=1s,tpot=1s,e2e=1s"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match="write"):
        Slo.parse(text)


def test_both_objectives_must_hold():
    slo = Slo(10, 5)
    assert slo.met(10, 5)
    assert not slo.met(11, 5)
    assert not slo.met(10, 5.5)
