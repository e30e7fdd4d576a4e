"""Fields that mean something to other servers and that we do not do: refused unless they ask for nothing."""

from collections.abc import Mapping
from typing import Any

from plait.spec.errors import Unsupported

NOTHING: tuple[Any, ...] = (None, False, [], {}, "")

HARMLESS: dict[str, tuple[Any, ...]] = {
    "audio": NOTHING,
    "bad_words": NOTHING,
    "beam_width": (None, 1),
    "cache_salt": NOTHING,
    "documents": NOTHING,
    "early_stopping": NOTHING,
    "function_call": (*NOTHING, "none"),
    "functions": NOTHING,
    "kv_transfer_params": NOTHING,
    "length_penalty": (None, 1),
    "logits_processors": NOTHING,
    "mm_processor_kwargs": NOTHING,
    "modalities": (*NOTHING, ["text"]),
    "prediction": NOTHING,
    "prompt_embeds": NOTHING,
    "reasoning_effort": (*NOTHING, "none"),
    "service_tier": (*NOTHING, "auto", "default"),
    "spaces_between_special_tokens": (None, True),
    "store": NOTHING,
    "stream_interval": (None, 1),
    "suffix": NOTHING,
    "use_beam_search": NOTHING,
    "verbosity": (None, "medium"),
    "vllm_xargs": NOTHING,
    "web_search_options": NOTHING,
}
"""Field to the values that ask for nothing beyond what we do."""


def refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Raises Unsupported for the first field that asks for what this server cannot do."""
    for name, value in fields.items():
        if name in HARMLESS and not any(value == ok and type(value) is type(ok) for ok in HARMLESS[name]):
            raise Unsupported(f"{name} is not supported by this version; leave it out", name)
