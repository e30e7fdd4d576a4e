"""The reward of recipes/demo.yaml: short answers that are whole sentences are best."""

MOST = 24
"""Words from which on an answer earns nothing for being short."""


def brief(prompts, completions, **columns):
    """One number a sample, in TRL's signature: at most 1, for a short sentence that ends."""
    texts = [completion[0]["content"].strip() for completion in completions]
    return [_short(text) - 0.5 * (not text.endswith((".", "!", "?"))) for text in texts]


def _short(text):
    words = len(text.split())
    return max(0.0, 1.0 - words / MOST) if words else 0.0
