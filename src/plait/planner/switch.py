"""From one placement to another by role changes alone: requests in flight stay where they are."""

from plait.spec.cluster import Placement, Role
from plait.spec.errors import UserError
from plait.spec.event import Reassign


def role_changes(present: Placement, wanted: Placement) -> tuple[Reassign, ...]:
    """Role changes in an order that never leaves a phase without an instance.

    Instances are matched by id. All that gain a phase change first, by way of MIXED where they also lose one;
    only then does any instance give a phase up.

    Raises:
        UserError: the placements differ in more than roles; such a change needs workers to be started.
    """
    now, then = ({each.id: each for each in placement.instances} for placement in (present, wanted))
    if now.keys() != then.keys() or any(
        (now[id].tp, now[id].pp, now[id].node) != (then[id].tp, then[id].pp, then[id].node) for id in now
    ):
        raise UserError("the new placement has other instances: role changes cannot lead there", "placement")
    changing = [id for id in sorted(now) if now[id].role is not then[id].role]
    gaining = [id for id in changing if now[id].role is not Role.MIXED]
    losing = [id for id in changing if then[id].role is not Role.MIXED]
    return tuple(Reassign(id, Role.MIXED) for id in gaining) + tuple(
        Reassign(id, then[id].role) for id in losing
    )
