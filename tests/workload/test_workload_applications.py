"""Fitted lengths have the published means, under the published cut."""

from dataclasses import replace

import numpy as np
import pytest

from plait.spec.errors import NotFound, UserError
from plait.workload import arrivals
from plait.workload.applications import APPLICATIONS, application_named


@pytest.mark.parametrize("name", APPLICATIONS)
def test_lengths_have_the_published_means_and_stay_below_the_cut(name):
    found = application_named(name)
    prompts, outputs = found.draw(np.random.default_rng(0), 60_000)
    assert prompts.mean() == pytest.approx(found.prompt_mean, rel=0.015)
    assert outputs.mean() == pytest.approx(found.output_mean, rel=0.015)
    assert (prompts + outputs).max() < 2048
    assert min(prompts.min(), outputs.min()) >= 1


def test_rows_come_at_their_times_and_again_with_the_same_seed():
    times = arrivals.constant(10, 50)
    first, second = (APPLICATIONS["sharegpt"].rows(np.random.default_rng(1), times) for _ in range(2))
    assert first == second
    assert [row.arrival_ns for row in first] == times.tolist()


def test_what_no_fit_reaches_is_refused():
    with pytest.raises(NotFound, match="longbench"):
        application_named("poems")
    with pytest.raises(UserError, match="lower its cv"):
        replace(APPLICATIONS["sharegpt"], prompt_mean=2000.0).draw(np.random.default_rng(0), 10)
