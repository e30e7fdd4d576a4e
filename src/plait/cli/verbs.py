"""`Verbs`: a verb with subjects that also stands by itself: `plait plan` and `plait plan rlhf`."""

from typing import Any

from typer.core import TyperGroup


class Verbs(TyperGroup):
    """What does not begin with a subject is about `alone`."""

    alone = "serving"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        if not args or args[0] not in self.commands:
            args = [self.alone, *args]
        return super().parse_args(ctx, args)


class Compressing(Verbs):
    """`plait compress MODEL` and `plait compress sweep MODEL`."""

    alone = "model"
