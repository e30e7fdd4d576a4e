"""A fleet whose model counts: the token after t is t + 1, and with adapter number a it is t + 1 + a.

The engine in front of it is the real one: driver, core, KV ledger, deadlines, queue and streams.
Only the workers' arithmetic is replaced, so that tests know every token and can hold a step back
until they have looked, or lose all workers at a chosen moment.
"""

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from plait.runtime.driver import Sink
from plait.runtime.engine import Engine, EngineConfig
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig
from plait.spec.adapter import Adapter
from plait.spec.errors import EngineFailure
from plait.spec.event import WorkerUp
from plait.spec.sampling import Draw, Opened, TokenLogprob
from plait.spec.step import Row, Step

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SIZES = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}


def write_folder(folder: Path, max_len: int) -> int:
    """A model folder without weights; returns the size of its vocabulary."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    raw.train_from_iterator(["hello there, what is the time?"], trainer)
    raw.save(str(folder / "tokenizer.json"))
    vocab = raw.get_vocab_size()
    config = {**SIZES, "vocab_size": vocab, "max_position_embeddings": max_len}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return vocab


@dataclass
class RowState:
    """What a worker would know of a row."""

    opened: Opened
    token: int
    drawn: int = 0


class CountingFleet:
    """One instance. Answers come in order, each when the event loop turns."""

    def __init__(self, vocab: int, slots: int) -> None:
        self._vocab = vocab
        self._slots = slots
        self._rows: dict[int, RowState] = {}
        self._answers: deque[tuple[Step, tuple[Draw, ...], bool]] = deque()
        self._sink: Sink | None = None
        self.adapters: dict[int, Adapter] = {}
        self.hold_after: int | None = None
        """Steps that draw a row's token after so many are held until `release`."""

    async def start(self, sink: Sink) -> None:
        self._sink = sink
        sink.post(WorkerUp(0, 0, self._slots))

    def submit(self, step: Step, opened: tuple[Opened, ...]) -> None:
        for request in step.closed:
            self._rows.pop(request, None)
        for state in opened:
            self._rows[state.request] = RowState(state, state.tokens[-1])
        rows = [self._draw(self._rows[row.request], row) for row in step.rows]
        again = [self._draw(self._rows[request], None) for request in step.again]
        drawers = [row.request for row in step.rows if row.draws] + list(step.again)
        late = any(self._late(self._rows[request]) for request in drawers)
        self._answers.append((step, (*rows, *again), late))
        asyncio.get_running_loop().call_soon(self._answer)

    async def adapt(self, adapter: Adapter) -> None:
        self.adapters[adapter.number] = adapter

    def unadapt(self, number: int) -> None:
        del self.adapters[number]

    async def close(self) -> None:
        self._answers.clear()

    def release(self) -> None:
        """Hold nothing back any more."""
        self.hold_after = None
        for _ in range(len(self._answers)):
            asyncio.get_running_loop().call_soon(self._answer)

    def die(self) -> None:
        """Every worker is lost for good."""
        assert self._sink is not None
        self._answers.clear()
        self._sink.fail(EngineFailure("the last worker died"))

    def _late(self, row: RowState) -> bool:
        return self.hold_after is not None and row.drawn > self.hold_after

    def _answer(self) -> None:
        if self._answers and not (self._answers[0][2] and self.hold_after is not None):
            step, draws, _ = self._answers.popleft()
            assert self._sink is not None
            self._sink.answered(step.id, draws)

    def _draw(self, state: RowState, row: Row | None) -> Draw:
        sampling, prompt = state.opened.sampling, ()
        if row is not None and sampling.prompt_logprobs is not None:
            end = min(row.first + row.count + 1, state.opened.prompt_tokens)
            seen = state.opened.tokens[row.first + 1 : end]
            prompt = tuple(self._score(token, sampling.prompt_logprobs) for token in seen)
        if row is not None and not row.draws:
            return Draw((), prompt_logprobs=prompt)
        state.token = (state.token + 1 + state.opened.adapter) % self._vocab
        state.drawn += 1
        scores = () if sampling.logprobs is None else (self._score(state.token, sampling.logprobs),)
        return Draw((state.token,), state.token in state.opened.stop_ids, scores, prompt)

    def _score(self, token: int, top: int) -> TokenLogprob:
        return TokenLogprob(token, -0.5, tuple(((token + i) % self._vocab, -0.5 - i) for i in range(top)))


def counting_engine(
    folder: Path, *, max_len: int = 512, max_queue: int = 4096, max_rows: int = 256, step_tokens: int = 512
) -> Engine:
    """An engine that counts; not started."""
    vocab = write_folder(folder, max_len)
    manager = ManagerConfig(
        model="tiny",
        admission=AdmissionConfig(max_queue=max_queue, max_rows=max_rows),
        batcher=BatcherConfig(step_tokens=step_tokens),
    )
    config = EngineConfig(folder=folder, name="tiny", max_len=max_len, manager=manager)
    return Engine(config, CountingFleet(vocab, slots=max(1 << 16, 2 * max_len)), instances=1)
