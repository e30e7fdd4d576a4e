"""TRL's GRPO on a contest: python trl_grpo_run.py FOLDER SEED THREADS; prints JSON of seconds and scores."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

THREADS = sys.argv[3]
os.environ |= {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}

import torch  # noqa: E402 - after the number of threads is set
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class Noted(TrainerCallback):
    """When each update ended, and its rewards."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.scores: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if "reward" in logs:
            self.times.append(time.perf_counter())
            self.scores.append(float(logs["reward"]))


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    told = json.loads((root / "contest.json").read_text())
    torch.set_num_threads(int(THREADS))
    spec = importlib.util.spec_from_file_location("reward", root / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    reward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reward)
    data = Dataset.from_list([json.loads(line) for line in (root / "prompts.jsonl").read_text().splitlines()])
    config = GRPOConfig(
        output_dir=str(root / f"trl-{seed}"),
        use_cpu=True,
        bf16=False,
        seed=seed,
        learning_rate=told["lr"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        per_device_train_batch_size=told["prompts"] * told["samples"],
        num_generations=told["samples"],
        max_completion_length=told["tokens"],
        generation_kwargs={"min_new_tokens": told["tokens"]},
        temperature=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        gradient_checkpointing=False,
        max_steps=told["updates"],
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    noted = Noted()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(root / "policy"),
        reward_funcs=reward.vowels,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(root / "policy", padding_side="left"),
        callbacks=[noted],
    )
    trainer.train()
    seconds = [later - sooner for sooner, later in zip(noted.times[:-1], noted.times[1:], strict=True)]
    print(json.dumps({"seconds": seconds, "scores": noted.scores}))


if __name__ == "__main__":
    main()
