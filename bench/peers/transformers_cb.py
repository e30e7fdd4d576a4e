"""transformers' continuous batching behind a door: `transformers_cb.py FOLDER THREADS`."""

import sys


def main() -> None:
    from door import Door, Work

    door = Door()
    folder, threads = sys.argv[1], int(sys.argv[2])
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    cache = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=2048)

    def run(work: Work) -> list[list[int]]:
        wish = GenerationConfig(max_new_tokens=work.output, do_sample=False, eos_token_id=-1)
        done = model.generate_batch(work.prompts, generation_config=wish, continuous_batching_config=cache)
        return [list(one.generated_tokens) for one in done.values()]

    door.serve(run)


if __name__ == "__main__":
    main()
