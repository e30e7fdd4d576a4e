"""TRL's PPO on a contest: python trl_ppo_run.py FOLDER SEED THREADS; prints JSON of seconds and scores."""

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

THREADS = sys.argv[3]
os.environ |= {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS, "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch  # noqa: E402 - after the number of threads is set
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402


class Timed(PPOTrainer):
    """Notes when each update was logged, and its scores."""

    def log(self, logs: dict[str, Any], *rest: Any) -> None:
        TIMES.append(time.perf_counter())
        SCORES.append(logs["objective/scores"])


TIMES: list[float] = []
SCORES: list[float] = []


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    told = json.loads((root / "contest.json").read_text())
    torch.set_num_threads(int(THREADS))
    words = AutoTokenizer.from_pretrained(root / "policy", padding_side="left")
    rows = [json.loads(line)["prompt"] for line in (root / "prompts.jsonl").read_text().splitlines()]
    data = Dataset.from_list([{"input_ids": words.encode(row)} for row in rows])
    config = PPOConfig(
        output_dir=str(root / f"trl-{seed}"),
        use_cpu=True,
        bf16=False,
        seed=seed,
        learning_rate=told["lr"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        per_device_train_batch_size=told["prompts"],
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=told["prompts"],
        total_episodes=told["prompts"] * told["updates"],
        response_length=told["tokens"],
        temperature=1.0,
        kl_coef=told["kl"],
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    judge = AutoModelForSequenceClassification.from_pretrained(root / "reward", num_labels=1)
    trainer = Timed(
        args=config,
        processing_class=words,
        model=AutoModelForCausalLM.from_pretrained(root / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(root / "policy"),
        reward_model=judge,
        value_model=AutoModelForSequenceClassification.from_pretrained(root / "reward", num_labels=1),
        train_dataset=data,
        eval_dataset=data.select(range(told["prompts"])),
    )
    trainer.train()
    seconds = [later - sooner for sooner, later in pairwise(TIMES)]
    print(json.dumps({"seconds": seconds, "scores": SCORES}))


if __name__ == "__main__":
    main()
