"""`Move`: the KV of one request goes from one instance to another; `Cancel` takes the wish back.

The target pulls and the target answers: exactly one `Moved` or `MoveFailed` for each move, unless the target
is lost. What an instance is made of (tensor and pipeline parallel workers, each with its layers and heads of
every slot) is not said here: the fleet cuts a move into the copies between the workers of both ends, and
answers when the last of them is done.

    core --Move--> target pulls from source --Moved--> core frees the source's slots, the request decodes
                          `------------------MoveFailed--> the same slots again under a new id, or recomputed
"""

from dataclasses import dataclass

from plait.spec.step import Span


@dataclass(frozen=True, slots=True)
class Move:
    """Copy positions [target.first, target.first + count) of a request's KV from `source` to `target`.

    Both spans begin at the same position and cover the same number of slots; pages are whole, so the last
    slots may be beyond `count` and hold nothing. Between the command and its answer nobody writes the
    source's slots, and nobody else touches the target's. Once it is answered, no copy of it is under way.
    """

    id: int
    """From the order that numbers steps too: a copy lane takes its moves in this order."""
    request: int
    count: int
    """Tokens that are copied, >= 1."""
    source: Span
    target: Span
    after: tuple[int, ...] = ()
    """The last unanswered step on the source that writes what is copied (the steps of an instance run in
    order); empty where all are answered. The copy may follow it layer by layer. If it fails, so does the
    move."""
    why: str = ""
    """In words, for the journal, where it was to be decided; see `Step`."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this move any more. It is answered all the same, either way, and should be soon; a move
    that was already answered stays so."""

    move: int
