"""Low-rank adapters (LoRA, arXiv 2106.09685), by peft: what is trained of a model whose weights stay.

The adapter is part of the module; weights that leave are merged, so that whoever takes them sees a model
without one. With the adapter off the module is the model as it was: a reference that takes no memory.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from plait.spec.errors import UserError

NAME, MARK = "default", ".lora_"


@dataclass(frozen=True)
class LoraConfig:
    """The adapter of every layer that has one."""

    rank: int = 16
    """Columns of its two factors."""
    alpha: float = 32.0
    """The product of the factors counts alpha / rank times."""
    targets: tuple[str, ...] = ()
    """Last parts of the names of linear layers, such as q_proj; (): all but the output head."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise UserError(
                f"lora needs a rank of 1 or more and an alpha above 0, not {self.rank} and {self.alpha}",
                "lora",
            )

    def peft(self, base: str) -> dict[str, Any]:
        """What peft's adapter_config.json says of it.

        Args:
            base: the model that it belongs to.
        """
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": list(self.targets) or "all-linear",
            "lora_dropout": 0.0,
            "bias": "none",
        }


def check_installed() -> None:
    """Raises UserError where peft is not."""
    if find_spec("peft") is None:
        raise UserError("lora needs the package peft: pip install 'plait[align]', or leave lora out", "lora")


def adapt(module: nn.Module, config: LoraConfig, seed: int) -> None:
    """Give a module its adapter, drawn from a seed; it changes nothing until it is trained.

    Raises:
        UserError: peft is not installed, or finds no such layers.
    """
    check_installed()
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    told = {key: value for key, value in config.peft("").items() if key not in ("peft_type", "task_type")}
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            inject_adapter_in_model(PeftConfig(**told), module, NAME)
    except ValueError as error:
        raise UserError(f"lora.targets {list(config.targets)}: {error}", "lora.targets") from error


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return MARK in name


def adapters(module: nn.Module) -> dict[str, Tensor]:
    """An adapter's parameters, by the names that peft's files have."""
    return {
        f"base_model.model.{name.replace(f'.{NAME}', '')}": weight.detach()
        for name, weight in module.named_parameters()
        if is_adapter(name)
    }


@torch.no_grad()
def merged(module: nn.Module) -> dict[str, Tensor]:
    """All parameters by the names of the model without an adapter, which is added to them."""
    adapted = {
        f"{name}.weight": part for name, part in module.named_modules() if hasattr(part, "get_delta_weight")
    }
    found = {}
    for name, weight in module.named_parameters():
        if not is_adapter(name):
            plain = name.replace(".base_layer", "")
            part = adapted.get(plain)
            found[plain] = weight.detach() if part is None else weight + part.get_delta_weight(NAME)
    return found


class Unadapted(nn.Module):
    """A stage with its adapter off. It holds nothing itself: the stage's parameters are not its own."""

    def __init__(self, part: Any) -> None:
        """`part`: a `Part`."""
        super().__init__()
        self._of = (part,)  # not registered as a part of this module
        self._adapted = tuple(each for each in part.modules() if hasattr(each, "get_delta_weight"))
        self.first, self.last, self.width = part.first, part.last, part.width

    def forward(self, received_BTN: Tensor | None, batch: Any) -> Tensor:
        """As the `Part`."""
        for each in self._adapted:
            each.enable_adapters(False)
        try:
            return self._of[0](received_BTN, batch)
        finally:
            for each in self._adapted:
                each.enable_adapters(True)
