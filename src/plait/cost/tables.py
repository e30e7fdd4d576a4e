"""`Tables`: DistServe's measurements of OPT on A100 as costs of plans; of OPT-175B, its analytic form."""

from dataclasses import dataclass

from plait.cost.appendix import opt_175b
from plait.cost.coefficients import KV_TOKENS, measured_tps, on_a100
from plait.cost.cost import Cost
from plait.spec.errors import UserError
from plait.spec.shape import ModelShape

ENGINES = ("distserve", "vllm")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one model on one engine, on A100 with 80 GB."""

    model: str
    engine: str = "distserve"

    @staticmethod
    def of(source: str, model: str, device: str) -> "Tables | None":
        """What `--cost` asks for: `roofline`, which is no table, or `a100-ENGINE`.

        Raises:
            UserError: there are no such tables for this model on this device.
        """
        if source == "roofline":
            return None
        engine = source.removeprefix("a100-")
        if engine not in ENGINES or not source.startswith("a100-"):
            known = ", ".join(("roofline", *(f"a100-{each}" for each in ENGINES)))
            raise UserError(f"no costs {source!r}; there are {known}, and files of plait profile", "cost")
        if device != "a100-80g" or model not in KV_TOKENS:
            raise UserError(
                f"{source} has no tables for {model} on {device}: they are of {', '.join(KV_TOKENS)} on "
                f"a100-80g; take --cost roofline",
                "cost",
            )
        if model == "opt-175b" and engine != "distserve":
            raise UserError("of opt-175b there is only the analytic form: --cost a100-distserve", "cost")
        return Tables(model, engine)

    def refusal(self, tp: int, pp: int) -> str:
        """See `Measured`. Stages are cut out of what was measured without."""
        known = measured_tps(self.model, self.engine)
        if not known or tp in known:
            return ""
        return f"{self.model} was measured with tp {', '.join(map(str, known))} only"

    def cost(self, shape: ModelShape, tp: int, pp: int) -> Cost:
        """See `Measured`. A negative coefficient counts as 0."""
        if self.model == "opt-175b":
            return opt_175b(shape, tp, pp)
        return on_a100(self.model, tp, pp, engine=self.engine)

    def slots(self, tp: int, pp: int) -> int | None:
        """See `Measured`."""
        return KV_TOKENS[self.model].get((tp, pp))

    def saturation(self, tp: int, pp: int) -> int | None:
        """Found from the costs."""
        return None
