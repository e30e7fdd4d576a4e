"""Greedy tokens are those of transformers; between our own schedules every bit is equal."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plait.model.hub import resolve
from plait.model.model import Model, ModelConfig
from plait.spec.errors import UserError
from plait.spec.sampling import Draw, SamplingParams
from plait.spec.step import Step
from plait.worker.executor import Executor
from plait.worker.plan import Drawing
from tests.scale import scaled, seed
from tests.tiny import EXACT, VOCAB, tiny_folder
from tests.worker.band import same
from tests.worker.script import Habits, Script, Task

TIE = 1e-4
"""A token may differ where the reference's two largest logits are closer than this, relatively."""
HABITS = {
    "alone, whole prompts": Habits(),
    "mixed, small chunks": Habits(batch=7, chunk=5),
    "preempted": Habits(batch=5, chunk=30, preempt=0.1),
    "shared prefixes": Habits(batch=6, chunk=40, preempt=0.1, share=True),
    "large batch, large chunks": Habits(batch=24, chunk=200),
}


class Twice(Executor):
    """Draws up anew also what goes on from the step before, and compares."""

    onward = 0
    """How often that was."""

    def _compute(self, plan):
        if (last := self._lineup) is not None:
            self.onward += 1
            anew = self._plan_anew(Step(0, (self.instance,), (), plan.requests))
            inputs, owned_R = self._inputs(anew)
            same(last.next_inputs(plan, self.rows), inputs)
            same(last.drawing, Drawing.of(anew, owned_R, self.rows))
        return super()._compute(plan)


def wishes(rng: random.Random, i: int) -> SamplingParams:
    """Greedy for most, with log-probabilities so that logits are compared; drawn for the rest."""
    if i % 3 == 0:
        return SamplingParams(temperature=0)
    if i % 3 == 1:
        return SamplingParams(temperature=0, logprobs=2, prompt_logprobs=1)
    return SamplingParams(
        temperature=0.9,
        top_p=0.95,
        top_k=40,
        seed=rng.randrange(2**40),
        choice=i % 4,
        presence_penalty=0.3,
        logprobs=1,
    )


def tasks(rng: random.Random, count: int, vocab: int) -> list[Task]:
    """Prompts of 1 to 60 tokens; every other begins as one before it did."""
    made: list[Task] = []
    for i in range(count):
        prompt = tuple(rng.randrange(vocab) for _ in range(rng.randint(1, 60)))
        if made and i % 2:
            prompt = rng.choice(made).prompt[:50] + prompt[:8]
        made.append(Task(prompt, rng.randint(1, 24), wishes(rng, i)))
    return made


def drawn(draws: list[Draw]) -> tuple:
    """What a row drew, with the bits of its log-probabilities (prompt ones come once per computation)."""
    return tuple((draw.tokens, draw.logprobs) for draw in draws)


@pytest.mark.parametrize("family", EXACT)
def test_schedules_change_no_bit(family, tmp_path):
    folder = tiny_folder(tmp_path, family)
    rng = random.Random(seed())
    work = tasks(rng, 24, VOCAB)
    want, onward = None, 0
    for page, threads in ((1, 1), (16, 2)):
        model = Model(ModelConfig(str(folder), slots=2048, page=page, threads=threads, exact=True))
        for name, habits in HABITS.items():
            for kv_BKXE in model.pool.layers:
                kv_BKXE.fill_(torch.nan)
            script = Script(Twice(model, 3), work, habits, rng.randrange(2**32))
            got = [drawn(draws) for draws in script.run()]
            want = want or got
            onward += script.executor.onward
            assert got == want, f"{family}, {name}, page {page}, {threads} threads"
            assert bool(script.preempted) == bool(habits.preempt), "the schedule did not do what it is for"
            assert bool(script.shared) == habits.share
            assert script.repeated
    assert onward, "no step went on from one before"


def ties_against(reference: torch.nn.Module, work: list[Task], got: list[list[Draw]]) -> tuple[int, int]:
    """(tokens compared, tokens that differ at a near tie); anything else that differs is an error."""
    compared = ties = 0
    for task, draws in zip(work, got, strict=True):
        tokens = [draw.tokens[0] for draw in draws]
        with torch.inference_mode():
            logits = reference(torch.tensor([[*task.prompt, *tokens]]), use_cache=False).logits[0]
        logits_TV = logits[len(task.prompt) - 1 : -1]
        compared += len(tokens)
        for t in (logits_TV.argmax(-1) != torch.tensor(tokens)).nonzero().flatten().tolist():
            best, second = logits_TV[t].topk(2).values.tolist()
            assert logits_TV[t, tokens[t]] >= second, f"token {t} is not among the two likeliest"
            assert best - second <= TIE * abs(best), f"token {t} differs: {best} against {second}"
            ties += 1
    return compared, ties


@pytest.mark.timeout(1800)
def test_greedy_tokens_are_those_of_transformers(tmp_path):
    """Counted over all families together: at least 100,000 tokens with PLAIT_TEST_ALL=1."""
    rng = random.Random(seed())
    compared = ties = 0
    for family in EXACT:
        folder = tiny_folder(tmp_path, family, seed=rng.randrange(1000))
        reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
        model = Model(ModelConfig(str(folder), slots=8192, page=16, exact=True))
        target = scaled(17_000)
        while target > 0:
            work = [
                Task(tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 80))), rng.randint(32, 128))
                for _ in range(min(32, -(-target // 80)))
            ]
            got = Script(Executor(model, 0), work, Habits(24, 50, 0.002), rng.randrange(2**32)).run()
            some, near = ties_against(reference, work, got)
            compared, ties, target = compared + some, ties + near, target - some
    print(f"{compared} tokens, {ties} differ at near ties")
    assert compared >= scaled(100_000)
    assert ties * 10_000 <= compared or (ties <= 1 and compared < 10_000)


@pytest.mark.parametrize("family", EXACT)
def test_generate_gives_the_same_tokens(family, tmp_path):
    """Against `generate` itself, with its cache; both go their own way, so a tie would show at once."""
    folder = tiny_folder(tmp_path, family, seed=5)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    reference.generation_config.eos_token_id = None
    prompts = [tuple((7 * i + 3 * p) % 250 for i in range(5 + 9 * p)) for p in range(4)]
    executor = Executor(Model(ModelConfig(str(folder), slots=1024)), 0)
    got = Script(executor, [Task(p, 24) for p in prompts], Habits(4, 16), 1).run()
    for prompt, draws in zip(prompts, got, strict=True):
        want = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[
            0, len(prompt) :
        ]
        assert [draw.tokens[0] for draw in draws] == want.tolist()


QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain what a prime number is.",
    "Name three fruits that are red.",
    "How does rain form?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "What is 17 plus 25?",
    "List the days of the week.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Describe a sunset in one sentence.",
    "How many legs does a spider have?",
    "What is the opposite of cold?",
    "Tell me a joke about cats.",
    "What is photosynthesis?",
    "Say hello in five languages.",
    "Which planet is the largest?",
    "Summarise the story of Cinderella.",
)


@pytest.mark.model
@pytest.mark.timeout(900)
def test_the_default_model_is_token_exact_under_every_schedule(tmp_path):
    """20 prompts x 64 tokens: equal to transformers, and bit by bit between schedules."""
    try:
        folder = resolve("smollm2-135m")
    except UserError as error:
        pytest.skip(f"the default model cannot be had: {error}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    outputs = 64
    work = []
    for i, question in enumerate(QUESTIONS[: max(4, scaled(20))]):
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        wish = SamplingParams(temperature=0, logprobs=1) if i % 2 else SamplingParams(temperature=0)
        work.append(Task(tuple(tokenizer(text).input_ids), outputs, wish))
    model = Model(ModelConfig(str(folder), slots=4096, page=16, exact=True))
    habits = (Habits(20, 48), Habits(7, 13, preempt=0.01), Habits(9, 100, preempt=0.01, share=True))
    runs = [Script(Executor(model, 0), work, habit, i).run() for i, habit in enumerate(habits)]
    for other in runs[1:]:
        assert [drawn(draws) for draws in other] == [drawn(draws) for draws in runs[0]]
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    compared, ties = ties_against(reference, work, runs[0])
    print(f"{compared} tokens, {ties} differ at near ties")
    assert compared == len(work) * outputs
    assert ties <= 1


def test_two_models_in_one_process_do_not_meet(tmp_path):
    work = [Task(tuple(range(10, 30)), 12)]
    folders = [tiny_folder(tmp_path, family) for family in ("llama", "opt")]
    alone = [
        Script(Executor(Model(ModelConfig(str(f), slots=128)), 0), work, Habits(), 0).run() for f in folders
    ]
    both = [Executor(Model(ModelConfig(str(f), slots=128)), 0) for f in folders]
    together = [Script(executor, work, Habits(chunk=6), 0).run() for executor in both]
    assert together == alone
    assert alone[0] != alone[1]


def test_other_families_are_served_too(tmp_path: Path):
    """Windows, soft-caps, fused projections, Conv1D and experts come through the same seam."""
    for family in ("gemma2", "phi3", "gpt2", "qwen3_moe"):
        folder = tiny_folder(tmp_path, family)
        eager = "eager" if family == "gemma2" else "sdpa"
        reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=eager)
        work = [Task(tuple((11 * i + p) % 250 for i in range(9 * p + 3)), 40) for p in range(6)]
        got = Script(Executor(Model(ModelConfig(str(folder), slots=1024)), 0), work, Habits(4, 16), 2).run()
        compared, ties = ties_against(reference, work, got)
        assert compared == 240
        assert ties <= 1, family
