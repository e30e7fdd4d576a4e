"""What must hold: latency objectives of one request."""

from dataclasses import dataclass

from plait.spec.errors import UserError

UNITS_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives that a request meets jointly or not at all."""

    ttft_ns: int
    """Time to first token, from arrival."""
    tpot_ns: int
    """Time per output token after the first."""

    def met(self, ttft_ns: float, tpot_ns: float) -> bool:
        """Whether both objectives hold."""
        return ttft_ns <= self.ttft_ns and tpot_ns <= self.tpot_ns

    @staticmethod
    def parse(text: str) -> "Slo":
        """Read `ttft=200ms,tpot=50ms`; units are us, ms and s.

        Raises:
            UserError: anything else.
        """
        parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        if parts.keys() != {"ttft", "tpot"}:
            raise UserError(f"cannot read the objectives {text!r}: write ttft=200ms,tpot=50ms", param="slo")
        return Slo(_duration_ns(parts["ttft"]), _duration_ns(parts["tpot"]))


def _duration_ns(text: str) -> int:
    number = text.rstrip("usm")
    try:
        return round(float(number) * UNITS_NS[text[len(number) :]])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"cannot read the duration {text!r}: write it like 200ms or 1.5s", param="slo"
        ) from error
