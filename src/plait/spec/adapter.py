"""`Adapter`: which low-rank adapter (LoRA) a worker is to have, and how it knows that it has that one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Adapter:
    """Two files of a folder, and what they must hold."""

    number: int
    """Rows name it by this, >= 1; never given again in a run, so that no two adapters are ever confused."""
    folder: str
    """adapter_config.json and adapter_model.safetensors, as peft writes them."""
    digest: str
    """Of the bytes of both files, hex."""
