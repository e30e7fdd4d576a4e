"""llama.cpp with 8-bit weights behind a door: `llama_cpp_q8.py MODEL.gguf THREADS`.

Through the C interface that llama-cpp-python exposes, as llama.cpp's own batched benchmark does: all
sequences in one context, one `llama_decode` a step, the largest logit drawn in numpy.
"""

import sys
from typing import Any

import llama_cpp
import numpy as np
from door import Door, Work

STEP_TOKENS, ROW_TOKENS = 512, 256


class Batches:
    """A context for some sequences, each with KV of its own, the faster of its two layouts."""

    def __init__(self, model: Any, rows: int, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = rows * ROW_TOKENS, rows, False
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(self, work: Work) -> list[list[int]]:
        """Continue all prompts from an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        rows = [
            (sequence, position, token, position == len(prompt) - 1)
            for sequence, prompt in enumerate(work.prompts)
            for position, token in enumerate(prompt)
        ]
        drawn: list[list[int]] = [[] for _ in work.prompts]
        for first in range(0, len(rows), STEP_TOKENS):
            self._step(rows[first : first + STEP_TOKENS], drawn)
        for step in range(work.output - 1):
            self._step([(s, len(work.prompts[s]) + step, d[-1], True) for s, d in enumerate(drawn)], drawn)
        return drawn

    def _step(self, rows: list[tuple[int, int, int, bool]], drawn: list[list[int]]) -> None:
        """Compute (sequence, position, token, wanted) rows, and draw the largest logit of the wanted ones."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        for i, (sequence, _, _, wanted) in enumerate(rows):
            if wanted:
                logits = llama_cpp.llama_get_logits_ith(self._context, i)
                drawn[sequence].append(int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab,)))))


def main() -> None:
    door = Door()
    path, threads = sys.argv[1], int(sys.argv[2])
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    contexts: dict[int, Batches] = {}

    def run(work: Work) -> list[list[int]]:
        rows = len(work.prompts)
        if rows not in contexts:
            contexts[rows] = Batches(model, rows, threads)
        return contexts[rows].run(work)

    door.serve(run)


if __name__ == "__main__":
    main()
