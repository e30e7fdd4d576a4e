"""How bodies are read."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """No conversions: "5" is not 5. Unknown keys are kept, to be judged by the server."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class Exact(Strict):
    """The same without unknown keys, for what is honoured as a whole or refused."""

    model_config = ConfigDict(extra="forbid")
