"""Roles for instances that are there: each assignment once, the best found, as few changes as can be."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.cost.catalog import device_named, shape_named
from plait.planner.cluster import Cluster
from plait.planner.errand import Errand
from plait.planner.plans import Plans
from plait.planner.roles import ORDER, Roles, RolesConfig, assigned, assignments, counted
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from tests.planner.test_planner_search import trace

FILE = "nodes: 1\ndevices_per_node: 4\ndevice: a100-80g\n"
NODE = Cluster(1, 4, device_named("a100-80g"), Link(300e9, 5_000), Link(3.125e9, 30_000))
ROLES = st.lists(st.tuples(st.sampled_from(ORDER), st.sampled_from([1, 2])), min_size=1, max_size=4)


def placement_of(roles):
    return Placement(tuple(Instance(i, role, tp) for i, (role, tp) in enumerate(roles)))


def serves(roles):
    return any(role.prefills for role in roles) and any(role.decodes for role in roles)


@given(ROLES)
def test_every_assignment_comes_once_and_is_reached_with_fewest_changes(listed):
    present = placement_of(listed)
    found = list(assignments(counted(present)))
    wanted: dict[str, int] = {}
    for roles in product(ORDER, repeat=len(listed)):
        if serves(roles):
            other = placement_of([(role, tp) for role, (_, tp) in zip(roles, listed, strict=True)])
            changes = sum(role is not now for role, (now, _) in zip(roles, listed, strict=True))
            key = str(counted(other))
            wanted[key] = min(changes, wanted.get(key, len(listed)))
    assert sorted(map(str, found)) == sorted(wanted)
    for each in found:
        then = assigned(present, each)
        assert counted(then) == each
        changed = [a.role is not b.role for a, b in zip(present.instances, then.instances, strict=True)]
        assert sum(changed) == wanted[str(each)]


def test_the_best_roles_follow_the_lengths_and_stay_where_nothing_is_gained():
    plans = Plans(shape_named("llama-2-7b"), NODE)
    config = RolesConfig(requests=150, runs=6)
    roles = Roles(plans, Slo.parse("ttft=500ms,tpot=40ms"), ManagerConfig(), config=config)
    present = Placement.disaggregated(1, 3)
    found = roles.best(trace(1500, 8), present)
    assert sum(each.role.prefills for each in found.instances) > 1
    assert roles.best(trace(1500, 8), found) == found


def test_instances_that_form_groups_or_do_not_fit_are_refused(tmp_path):
    (tmp_path / "c.yaml").write_text(FILE)
    slo = Slo.parse("ttft=500ms,tpot=40ms")
    for instance, says in [
        (Instance(0, Role.ELASTIC), "elastic"),
        (Instance(0, tp=8), "8 devices on a node"),
    ]:
        manager = ManagerConfig(placement=Placement((instance,)))
        with pytest.raises(UserError, match=says):
            Errand("llama-2-7b", str(tmp_path / "c.yaml"), slo, manager=manager).roles()
