"""`placed`: the scenario of a placement on a cluster. Placement files are written here and read back."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from plait.cost.cost import ByInstance
from plait.planner.plans import Plan, Plans
from plait.serving.batcher import BatcherConfig
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Placement
from plait.spec.errors import UserError
from plait.spec.slo import Slo

NS = 1e9


def placed(placement: Placement, plans: Plans, model: str = "", slo: Slo | None = None) -> Scenario:
    """Each instance with the cost and the memory of its plan, on the cluster's links.

    Args:
        slo: elastic instances keep to it; None: what a pause costs is weighed.

    Raises:
        UserError: an instance has a plan that the model or the cluster cannot have.
    """
    found = {each.id: Plan(each.tp, each.pp, each.nodes) for each in placement.instances}
    for plan in found.values():
        if reason := plans.refusal(plan):
            raise UserError(f"an instance with {plan}: {reason}", "placement")
    grouped = {each.id for each in placement.instances if each.role.elastic}
    costs = {
        (plan, id in grouped): plans.group_cost(plan) if id in grouped else plans.cost(plan)
        for id, plan in found.items()
    }
    cost = ByInstance({id: costs[plan, id in grouped] for id, plan in found.items()})
    cluster, shape, elastic = plans.cluster, plans.shape, elastic_of(placement, plans, slo)
    # One step more than there are stages: the next one waits before the first stage.
    depth = 1 + max(plan.pp for plan in found.values())
    return Scenario(
        placement,
        cost if len(costs) > 1 else next(iter(costs.values())),
        {id: plans.slots(plan) for id, plan in found.items()},
        ManagerConfig(model=model, batcher=BatcherConfig(depth=depth), elastic=elastic),
        Network(shape.kv_bytes_per_token, cluster.local, cluster.remote),
    )


def elastic_of(placement: Placement, plans: Plans, slo: Slo | None) -> ElasticConfig:
    """How the elastic instances of a placement decide, if it has any.

    Raises:
        UserError: times of groups were measured, but none of such instances.
    """
    elastic = [each for each in placement.instances if each.role.elastic]
    first = [Plan(each.tp, each.pp, each.nodes) for each in elastic if each.role.prefills]
    then = [Plan(each.tp, each.pp, each.nodes) for each in elastic if each.role.decodes]
    if not first or not then:
        return ElasticConfig()
    config = ElasticConfig(
        plans.widths(first[0], len(first)),
        plans.group_decode_ns(then[0]),
        move_token_ns=plans.shape.kv_bytes_per_token / plans.cluster.local.bandwidth * NS,
    )
    return config if slo is None else replace(config, ttft_ns=float(slo.ttft_ns), tpot_ns=float(slo.tpot_ns))


def save_placement(path: Path, placement: Placement, about: Mapping[str, Any]) -> None:
    """Write a placement file, as `workload.placement` reads it.

    Args:
        path: where to; JSON.
        placement: its instances.
        about: how it was found, kept beside them for people.
    """
    whole = {"about": dict(about), "instances": [asdict(each) for each in placement.instances]}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
