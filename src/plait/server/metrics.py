"""Prometheus metrics: vLLM's names where the meaning is equal, `plait:` for the rest.

Counts that the engine keeps are read when a scraper asks; only durations are observed here.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from plait.spec.command import Command
from plait.spec.event import Event
from plait.spec.request import REFUSALS, EndReason
from plait.spec.step import Step

if TYPE_CHECKING:
    from plait.runtime.engine import Engine, Stats
    from plait.runtime.stream import Stream

FINISHED = {EndReason.STOP: "stop", EndReason.LENGTH: "length", EndReason.ABORTED: "abort"}
"""vLLM's words for our reasons; every other ending is "error"."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """A registry of its own for each app."""

    def __init__(self, engine: "Engine") -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self._labels = (engine.card.name, "0")
        engine.watch(self._see)
        self.ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", SECONDS)
        self.itl = self._histogram("inter_token_latency_seconds", "Between a request's tokens.", SECONDS)
        self.tpot = self._histogram("request_time_per_output_token_seconds", "Mean after the first.", SECONDS)
        self.e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", SECONDS)
        self.queue = self._histogram("request_queue_time_seconds", "Arrival to first step.", SECONDS)
        self.prefill = self._histogram("request_prefill_time_seconds", "First step to first token.", SECONDS)
        self.decode = self._histogram("request_decode_time_seconds", "First token to last.", SECONDS)
        self.inference = self._histogram(
            "request_inference_time_seconds", "First step to last token.", SECONDS
        )
        self.steps = self._histogram("iteration_tokens_total", "Tokens that a step computes.", COUNTS)
        self.prompt = self._histogram("request_prompt_tokens", "Tokens of prompts.", COUNTS)
        self.generated = self._histogram("request_generation_tokens", "Tokens drawn.", COUNTS)
        self.n = self._histogram("request_params_n", "Choices asked for.", COUNTS)
        self.max_tokens = self._histogram("request_params_max_tokens", "max_tokens asked for.", COUNTS)

    def _see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Step):
                self.steps.observe(command.new_tokens)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", words, ("model_name", "engine"), buckets=buckets, registry=self.registry
        )
        return histogram.labels(*self._labels)


class Timer:
    """Observes one sequence as its pieces come."""

    def __init__(self, metrics: Metrics, stream: "Stream") -> None:
        self._metrics = metrics
        self._stream = stream
        self._last_s = stream.submitted_s
        self._first_s = 0.0
        self._tokens = 0
        metrics.prompt.observe(stream.prompt_tokens)

    def piece(self, tokens: int, last: bool) -> None:
        """`tokens` more arrived; `last`: the sequence is finished."""
        now_s = time.perf_counter()
        if tokens and not self._tokens:
            self._first_s = now_s
            self._metrics.ttft.observe(now_s - self._stream.submitted_s)
        elif tokens:
            self._metrics.itl.observe((now_s - self._last_s) / tokens)
        self._last_s = now_s if tokens else self._last_s
        self._tokens += tokens
        if last:
            self._metrics.e2e.observe(now_s - self._stream.submitted_s)
            self._metrics.generated.observe(self._tokens)
            self._phases()

    def _phases(self) -> None:
        begun_s = self._stream.begun_s
        if begun_s is None or not self._tokens:
            return
        self._metrics.queue.observe(begun_s - self._stream.submitted_s)
        self._metrics.prefill.observe(self._first_s - begun_s)
        self._metrics.decode.observe(self._last_s - self._first_s)
        self._metrics.inference.observe(self._last_s - begun_s)
        if self._tokens > 1:
            self._metrics.tpot.observe((self._last_s - self._first_s) / (self._tokens - 1))


class _EngineCollector(Collector):
    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        labels = {"model_name": self._engine.card.name, "engine": "0"}
        yield from _gauges(stats, labels)
        yield from _counters(stats, labels)
        yield from _instances(stats, labels)
        yield from _adapters(stats, labels)


def _gauges(stats: "Stats", labels: dict[str, str]) -> Iterator[Metric]:
    used = stats.kv_used_slots / stats.kv_slots if stats.kv_slots else 0.0
    cache = {**labels, "block_size": "1", "num_gpu_blocks": str(stats.kv_slots)}
    yield _gauge("vllm:num_requests_running", "Requests with KV.", stats.running, labels)
    yield _gauge("vllm:num_requests_waiting", "Requests in the queue.", stats.waiting, labels)
    yield _gauge("vllm:kv_cache_usage_perc", "Share of KV slots in use, 0 to 1.", used, labels)
    yield _gauge("vllm:cache_config_info", "Size of the KV pool.", 1, cache)


def _counters(stats: "Stats", labels: dict[str, str]) -> Iterator[Metric]:
    yield _counter("vllm:prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens, labels)
    yield _counter("vllm:generation_tokens", "Tokens drawn.", stats.generation_tokens, labels)
    yield _counter("vllm:num_preemptions", "Requests set back.", stats.preemptions, labels)
    yield _counter("plait:moves", "Requests moved between instances.", stats.moves, labels)
    yield _counter("plait:moved_tokens", "Tokens whose KV was moved.", stats.moved_tokens, labels)
    yield _counter(
        "plait:move_retries", "Moves that failed and were tried again.", stats.move_retries, labels
    )
    yield _counter("vllm:prefix_cache_queries", "Tokens looked up.", stats.prefix_queries, labels)
    yield _counter("vllm:prefix_cache_hits", "Tokens found.", stats.prefix_hits, labels)
    finished = dict.fromkeys(["stop", "length", "abort", "error"], 0)
    refused = dict.fromkeys(sorted(reason.value for reason in REFUSALS), 0)
    for reason, count in stats.finished.items():
        table = refused if reason in REFUSALS else finished
        word = str(reason) if reason in REFUSALS else FINISHED.get(EndReason(reason), "error")
        table[word] += count
    yield _by("vllm:request_success", "Finished requests.", finished, labels, "finished_reason")
    yield _by("vllm:admission_rejections", "Refused requests.", refused, labels, "reason")


def _instances(stats: "Stats", labels: dict[str, str]) -> Iterator[Metric]:
    names = [*labels, "instance", "role", "state"]
    used = GaugeMetricFamily("plait:instance_kv_used_slots", "KV slots in use.", labels=names)
    slots = GaugeMetricFamily("plait:instance_kv_slots", "KV slots there are.", labels=names)
    running = GaugeMetricFamily("plait:instance_running", "Requests with KV there.", labels=names)
    for instance in stats.instances:
        values = [*labels.values(), str(instance.id), instance.role, instance.state]
        running.add_metric(values, instance.running)
        used.add_metric(values, instance.kv_used)
        slots.add_metric(values, instance.kv_slots)
    yield from (running, used, slots)


def _adapters(stats: "Stats", labels: dict[str, str]) -> Iterator[Metric]:
    """Of those that take requests; one that was unloaded is not shown any more."""
    running = GaugeMetricFamily(
        "plait:adapter_running", "Requests that have not ended.", labels=[*labels, "adapter"]
    )
    for adapter in stats.adapters:
        running.add_metric([*labels.values(), adapter.name], adapter.running)
    came = {adapter.name: adapter.requests for adapter in stats.adapters}
    yield _gauge("plait:adapters_loaded", "Adapters that take requests.", len(came), labels)
    yield running
    yield _by("plait:adapter_requests", "Requests that came for an adapter.", came, labels, "adapter")


def _gauge(name: str, words: str, value: float, labels: dict[str, str]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, words: str, value: float, labels: dict[str, str]) -> Metric:
    family = CounterMetricFamily(name, words, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _by(name: str, words: str, values: dict[str, int], labels: dict[str, str], key: str) -> Metric:
    family = CounterMetricFamily(name, words, labels=[*labels, key])
    for word, value in values.items():
        family.add_metric([*labels.values(), word], value)
    return family
