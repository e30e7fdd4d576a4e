"""`Roofline`: a step's time from a data sheet and a config.json, before anything was measured."""

from plait.cost.cost import Load, pairs
from plait.spec.cluster import Device, Link
from plait.spec.errors import UserError
from plait.spec.shape import ModelShape
from plait.spec.step import Step

NS = 1_000_000_000


class Roofline:
    """Each group of operations takes the longer of its memory traffic and its arithmetic.

    Groups: linear layers with the output head (all weights read once, however many rows share them),
    attention of chunks, attention of decodes. They run one after another, after a fixed `step_ns`. A group of
    several instances shares tokens and KV evenly, while each member reads all weights.
    """

    def __init__(self, device: Device, shape: ModelShape, tp: int = 1, link: Link | None = None) -> None:
        """Args:
            device: one of the devices of an instance.
            shape: the model.
            tp: devices that share each layer of an instance.
            link: between the devices of an instance, for two ring all-reduces a layer; None: not counted.

        Raises:
            UserError: no device, or one without speed.
        """
        if tp < 1:
            raise UserError(f"tp is {tp}; an instance has at least one device", param="tp")
        if min(device.flops, device.bandwidth, device.efficiency) <= 0:
            raise UserError(f"device {device.name!r} needs flops, bandwidth and efficiency above 0")
        self.device, self.shape, self.tp, self.link = device, shape, tp, link
        self._token_flops, self._logits_flops = shape.flops_per_token, shape.flops_per_logits
        self._weight_bytes = shape.step_bytes
        # Attention window -> (FLOPs a pair, KV bytes a token) of the layers that have it.
        self._windows: dict[int | None, tuple[int, float]] = {}
        for layer in shape.layers:
            pair_flops, token_bytes = self._windows.get(layer.window, (0, 0.0))
            self._windows[layer.window] = (
                pair_flops + 4 * layer.heads * layer.head_dim,
                token_bytes + 2 * layer.kv_heads * layer.head_dim * shape.kv_bits / 8,
            )

    def step_ns(self, step: Step) -> int:
        """See `Cost`."""
        load = Load.of(step)
        linear_flops = (load.tokens * self._token_flops + load.draws * self._logits_flops) / load.members
        seconds = self._seconds(self._weight_bytes, linear_flops)
        for window, (pair_flops, token_bytes) in self._windows.items():
            seconds += self._attention(step, load, window, pair_flops, token_bytes)
        seconds += self._exchange(load.tokens / load.members)
        return self.device.step_ns + max(1, round(seconds * NS))

    def kv_slots(self, share: float = 0.9) -> int:
        """Tokens whose KV fits beside the weights in `share` of an instance's memory.

        Raises:
            UserError: the weights alone do not fit.
        """
        room = self.device.memory_bytes * self.tp * share - self.shape.weight_bytes
        slots = int(room // self.shape.kv_bytes_per_token)
        if slots < 1:
            weights, devices = f"{self.shape.weight_bytes / 1e9:.1f} GB", f"{self.tp} x {self.device.name}"
            raise UserError(f"{weights} of weights do not fit {devices}: give an instance more devices", "tp")
        return slots

    def _attention(
        self, step: Step, load: Load, window: int | None, pair_flops: int, token_bytes: float
    ) -> float:
        """Seconds of attention in the layers of one window: chunks, then decodes."""
        context = load.context_tokens
        chunk_pairs, chunk_keys = load.chunk_pairs, load.cached_tokens + load.chunk_tokens
        if window is not None:
            context = min(context, load.decodes * window)
            chunks = [row for row in step.rows if row.given]
            chunk_pairs = sum(pairs(row, window) for row in chunks)
            chunk_keys = sum(min(row.first, window) + row.count for row in chunks)
        n = load.members
        prefill = self._seconds(chunk_keys * token_bytes / n, chunk_pairs * pair_flops / n)
        return prefill + self._seconds(context * token_bytes / n, context * pair_flops / n)

    def _seconds(self, moved_bytes: float, flops: float) -> float:
        """The roofline itself, on the devices of one instance."""
        device = self.device
        return max(moved_bytes / device.bandwidth, flops / (device.flops * device.efficiency)) / self.tp

    def _exchange(self, tokens: float) -> float:
        """Seconds of the two ring all-reduces of each layer."""
        if self.link is None or self.tp == 1:
            return 0.0
        payload = tokens * self.shape.hidden * self.device.dtype_bytes
        ring = 2 * (self.tp - 1) * (payload / self.tp / self.link.bandwidth + self.link.latency_ns / NS)
        return 2 * len(self.shape.layers) * ring
