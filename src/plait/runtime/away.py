"""`away`: run an errand in a process of its own, so that its work holds up no step of those who serve."""

import asyncio
import sys
from collections.abc import Sequence

import msgspec

from plait.planner.errand import Answer, Errand, Question
from plait.spec.cluster import Placement
from plait.spec.errors import EngineFailure, UserError
from plait.workload.trace import TraceRow

LAST = 2000
"""Characters of what a process said before it died."""


async def away(errand: Errand, rows: Sequence[TraceRow], present: Placement) -> Placement:
    """The roles for a workload. If the caller is cancelled, the process ends.

    Raises:
        UserError: there are none, and why.
        EngineFailure: the process died.
    """
    question = msgspec.json.encode(Question(errand, present, tuple(rows)))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "plait.planner", stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        said, complaint = await process.communicate(question)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = complaint.decode(errors="replace")[-LAST:]
        raise EngineFailure(f"the process that plans ended with {process.returncode}: {last}")
    answer = msgspec.json.decode(said, type=Answer)
    if answer.placement is None:
        raise UserError(answer.error, "slo")
    return answer.placement
