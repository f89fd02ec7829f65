"""llama.cpp's own reading of a GGUF file, in a process of its own: python tests/llama_cpp.py FILE < asked.json

asked: {"texts": [...], "prompts": [[id, ...], ...], "max_new": n}; it prints {"ids": of the texts, without special tokens; "greedy": of the
prompts, for each [ids, gaps], gaps[t] the difference of the two largest log-probabilities at token t}.
"""

import json
import subprocess
import sys
import urllib.request


def ask(file, texts=(), prompts=(), max_new: int = 0) -> dict:
    """What llama.cpp makes of texts and prompts; skips the test without the package xllamacpp."""
    import pytest

    pytest.importorskip("xllamacpp")
    asked = json.dumps(dict(texts=list(texts), prompts=list(prompts), max_new=max_new))
    done = subprocess.run([sys.executable, __file__, file], input=asked, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main(file: str):
    import xllamacpp

    asked = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.port, params.warmup = file, 512, 0, False
    params.n_parallel, params.cpuparams.n_threads = 1, 2
    server = xllamacpp.Server(params)

    def post(path: str, body: dict) -> dict:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    out = {"ids": [], "greedy": []}
    for text in asked["texts"]:
        out["ids"].append(post("/tokenize", dict(content=text, add_special=False, parse_special=False))["tokens"])
    for prompt in asked["prompts"]:
        settings = dict(temperature=0.0, n_predict=asked["max_new"], n_probs=2, return_tokens=True)
        said = post("/completion", dict(prompt=prompt, cache_prompt=False, samplers=["temperature"], **settings))
        likely = [each["top_logprobs"] for each in said["completion_probabilities"]]
        out["greedy"].append([said["tokens"], [one["logprob"] - two["logprob"] for one, two in likely]])
    print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
