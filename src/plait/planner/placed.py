"""`placed`: the scenario of a placement on a cluster. Placement files are written here and read back."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from plait.cost.cost import ByInstance
from plait.planner.plans import Plan, Plans
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Placement
from plait.spec.errors import UserError


def placed(placement: Placement, plans: Plans, model: str = "") -> Scenario:
    """Each instance with the cost and the memory of its plan, on the cluster's links.

    Raises:
        UserError: an instance has a plan that the model or the cluster cannot have.
    """
    found = {each.id: Plan(each.tp, each.pp, each.nodes) for each in placement.instances}
    for plan in found.values():
        if reason := plans.refusal(plan):
            raise UserError(f"an instance with {plan}: {reason}", "placement")
    costs = {plan: plans.cost(plan) for plan in found.values()}
    cost = ByInstance({id: costs[plan] for id, plan in found.items()})
    cluster, shape = plans.cluster, plans.shape
    # One step more than there are stages: the next one waits before the first stage.
    depth = 1 + max(plan.pp for plan in found.values())
    return Scenario(
        placement,
        cost if len(costs) > 1 else next(iter(costs.values())),
        {id: plans.slots(plan) for id, plan in found.items()},
        ManagerConfig(model=model, batcher=BatcherConfig(depth=depth)),
        Network(shape.kv_bytes_per_token, cluster.local, cluster.remote),
    )


def save_placement(path: Path, placement: Placement, about: Mapping[str, Any]) -> None:
    """Write a placement file, as `workload.placement` reads it.

    Args:
        path: where to; JSON.
        placement: its instances.
        about: how it was found, kept beside them for people.
    """
    whole = {"about": dict(about), "instances": [asdict(each) for each in placement.instances]}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
