"""`Plan`: how the devices of one instance share the model. `Plans`: what each plan costs and holds."""

from dataclasses import dataclass, field

from plait.cost.cost import Cost
from plait.cost.group_widths import decode_ns_of, widths_of
from plait.cost.measured import Measured
from plait.cost.pipeline import Pipeline
from plait.cost.roofline import Roofline
from plait.cost.scaling_base import ScalingBase
from plait.planner.cluster import Cluster
from plait.search.batching import Width
from plait.spec.errors import UserError
from plait.spec.shape import ModelShape
from plait.spec.step import Row, Step

MEMORY_SHARE = 0.9
"""Of a device's memory, for weights and KV."""
SATURATED = 1.15
"""A step is large enough when a token costs this many times what it costs in a very large one."""
LARGE = 8192
LONGEST = 1 << 20
"""Tokens of the longest prompt for which times of groups are fitted."""
PAGE = 16
"""Tokens of a page of KV, about."""


@dataclass(frozen=True, slots=True, order=True)
class Plan:
    """`tp` devices share each layer, `pp` stages have a share of the layers each, on `nodes` nodes."""

    tp: int = 1
    pp: int = 1
    nodes: int = 1
    """Nodes over which the stages are spread evenly; the devices of one stage are always on one node."""

    @property
    def devices(self) -> int:
        """Of one instance."""
        return self.tp * self.pp

    def __str__(self) -> str:
        crossing = f" over {self.nodes} nodes" if self.nodes > 1 else ""
        return f"tp{self.tp} pp{self.pp}{crossing}"


@dataclass(frozen=True, slots=True)
class Plans:
    """What a model costs on a cluster, by plan: a roofline, cut into stages, or published measurements."""

    shape: ModelShape
    cluster: Cluster
    measured: Measured | None = None
    """Step times; plans that were not measured cannot be used then."""
    groups: ScalingBase | None = None
    """Measured times of elastic groups; None: those that the costs of steps say of several instances."""
    _costs: dict[Plan, Cost] = field(default_factory=dict, repr=False, compare=False)

    def of(self, longest: int) -> tuple[dict[Plan, str], list[Plan]]:
        """All plans that the cluster could have: those that cannot be used, with the reason, and the others.

        Args:
            longest: tokens of the longest request, whose KV an instance must hold.
        """
        refused: dict[Plan, str] = {}
        usable: list[Plan] = []
        for plan in self.every():
            reason = self.refusal(plan, longest)
            if reason:
                refused[plan] = reason
            else:
                usable.append(plan)
        return refused, usable

    def every(self) -> list[Plan]:
        """Plans of the cluster, usable or not. Sizes are the divisors of a node and of the cluster: others
        would leave devices idle."""
        cluster = self.cluster
        plans = []
        for tp in _divisors(cluster.devices_per_node):
            for nodes in _powers(cluster.nodes):
                inside = cluster.devices_per_node // tp
                plans += [Plan(tp, nodes * each, nodes) for each in _powers(inside)]
        return sorted(plans)

    def refusal(self, plan: Plan, longest: int = 1) -> str:
        """Why a plan cannot be used; empty: it can."""
        layer, layers = self.shape.layers[0], len(self.shape.layers)
        if layer.heads % plan.tp or (layer.kv_heads % plan.tp and plan.tp % layer.kv_heads):
            return f"{layer.heads} query and {layer.kv_heads} KV heads cannot be shared by {plan.tp} devices"
        if plan.pp > layers:
            return f"{layers} layers cannot be cut into {plan.pp} stages"
        per_node, over = divmod(plan.devices, plan.nodes)
        if over or plan.pp % plan.nodes or plan.nodes > self.cluster.nodes:
            return f"{plan.pp} stages cannot be spread evenly over {plan.nodes} of {self.cluster.nodes} nodes"
        if per_node > self.cluster.devices_per_node:
            return f"{per_node} devices on a node of {self.cluster.devices_per_node}"
        if self.measured is not None and (reason := self.measured.refusal(plan.tp, plan.pp)):
            return reason
        slots = self.slots(plan)
        if slots < longest:
            size, there = self.shape.weight_bytes / 1e9, self.cluster.device.memory_bytes * plan.devices / 1e9
            return (
                f"{size:.1f} GB of weights leave room for {max(slots, 0):,} KV tokens in {there:.0f} GB of "
                f"memory; the longest request has {longest:,}"
            )
        return ""

    def slots(self, plan: Plan) -> int:
        """KV tokens beside the weights; 0 or less: not even the weights fit. Where there are more devices in
        a stage than KV heads, several hold the same head."""
        known = None if self.measured is None else self.measured.slots(plan.tp, plan.pp)
        if known is not None:
            return known
        copies = max(1, plan.tp // self.shape.layers[0].kv_heads)
        room = self.cluster.device.memory_bytes * plan.devices * MEMORY_SHARE - self.shape.weight_bytes
        return int(room // (self.shape.kv_bytes_per_token * copies))

    def cost(self, plan: Plan) -> Cost:
        """Of a step on one instance. Hops of a plan over several nodes all count as hops between nodes."""
        found = self._costs.get(plan)
        if found is None and self.measured is not None:
            found = self._costs[plan] = self.measured.cost(self.shape, plan.tp, plan.pp)
        if found is None:
            cluster = self.cluster
            found = Roofline(cluster.device, self.shape, plan.tp, cluster.local)
            if plan.pp > 1:
                hop = cluster.local if plan.nodes == 1 else cluster.remote
                values = self.shape.hidden * cluster.device.dtype_bytes
                found = Pipeline(found, plan.pp, len(self.shape.layers), values, hop)
            self._costs[plan] = found
        return found

    def group_cost(self, plan: Plan) -> Cost:
        """Of a step on a group of instances.

        Raises:
            UserError: there are measured times, but none of such instances.
        """
        return self.cost(plan) if self.groups is None else self.groups.groups(plan.tp)

    def widths(self, plan: Plan, most: int) -> tuple[Width, ...]:
        """Times of prompts on groups of up to `most` instances. Raises as `group_cost` does."""
        if self.groups is not None:
            return self.groups.widths(plan.tp)
        sizes = sorted({*_powers(most), most})
        return widths_of(self.cost(plan), sizes, min(LONGEST, most * self.slots(plan)))

    def group_decode_ns(self, plan: Plan) -> float:
        """A decode step, about. Raises as `group_cost` does."""
        known = self.groups
        return decode_ns_of(self.cost(plan)) if known is None else known.decode_ns(plan.tp)

    def refusal_of_groups(self, plan: Plan, count: int, longest: int) -> str:
        """Why a pool of so many elastic instances cannot be used; empty: it can. A request may lie on all of
        them, with a page half empty on each."""
        if reason := self.refusal(plan):
            return reason
        if self.groups is not None and plan.tp not in {
            each.tp for each in self.groups.degrees if each.sp == 1
        }:
            return f"groups of instances of tp {plan.tp} were not measured"
        slots = self.slots(plan)
        if count * (slots - PAGE) < longest:
            return f"{count} instances hold {slots:,} KV tokens each; the longest request has {longest:,}"
        return ""

    def saturation(self, plan: Plan) -> int:
        """L_m: fewest tokens, a power of two, with which a step of prompts uses the devices well.
        Or what was measured."""
        known = None if self.measured is None else self.measured.saturation(plan.tp, plan.pp)
        if known is not None:
            return known
        cost, tokens = self.cost(plan), 128
        while tokens < LARGE and _token_ns(cost, tokens) > SATURATED * _token_ns(cost, LARGE):
            tokens *= 2
        return tokens

    def chunk(self, plan: Plan, tpot_ns: int) -> int:
        """Most tokens, a power of two, that a step may have where prompts and decodes share it."""
        cost, tokens = self.cost(plan), 32
        while tokens < LARGE and 2 * tokens * _token_ns(cost, 2 * tokens) <= tpot_ns:
            tokens *= 2
        return tokens

    def check(self, longest: int) -> list[Plan]:
        """Plans that can be used.

        Raises:
            UserError: none; says how much memory the model needs.
        """
        refused, usable = self.of(longest)
        if usable:
            return usable
        need = (self.shape.weight_bytes + longest * self.shape.kv_bytes_per_token) / MEMORY_SHARE
        device = self.cluster.device
        enough = -(-int(need) // device.memory_bytes)
        reasons = "; ".join(f"{plan}: {reason}" for plan, reason in list(refused.items())[-2:])
        raise UserError(
            f"the model fits nowhere on {self.cluster.devices} x {device.name}: it needs "
            f"{need / 1e9:.0f} GB, at least {enough} such devices an instance ({reasons})",
            "model",
        )


def single(role_tokens: int) -> Step:
    """A step that computes one prompt."""
    return Step(0, (0,), (Row(0, 0, role_tokens, draws=True),))


def _token_ns(cost: Cost, tokens: int) -> float:
    """In prompts of 512 tokens at most, so that attention counts little."""
    rows = tuple(Row(i, 0, min(512, tokens), draws=True) for i in range(max(1, tokens // 512)))
    return cost.step_ns(Step(0, (0,), rows)) / tokens


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _powers(most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if 1 << i <= most]
