"""Models by their name on the Hugging Face hub, ORG/NAME or ORG/NAME@REVISION, through the hub library's cache.

What is downloaded is what a directory of ours needs, and no more: settings, the tokenizer's files, safetensors. HF_HUB_OFFLINE, HF_HOME, HF_TOKEN
and the other settings of the library do what they say there.
"""

import functools
import pathlib
import re

from reft_jax.errors import InputError

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?", re.ASCII)
PATTERNS = (
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
)


def is_name(source: str) -> bool:
    """Whether it may be a model's name: ORG/NAME, and no path that is here nor a GGUF file's."""
    return NAME.fullmatch(source) is not None and not source.endswith(".gguf") and not pathlib.Path(source).exists()


@functools.cache
def snapshot(source: str) -> pathlib.Path:
    """The folder of the model's files, downloaded where the cache lacks them; its name is the commit's. InputError."""
    import huggingface_hub
    from huggingface_hub import errors

    name, revision = NAME.fullmatch(source).groups()
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*PATTERNS]))
    except Exception as error:  # of the library, and of what it speaks HTTP with
        said = " ".join(str(error).split())[:300]
        refused = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError)
        if isinstance(error, refused):
            raise InputError(
                f"{source}: there is no such folder here, and the Hugging Face hub refuses it ({type(error).__name__}: {said}). Mend the name or "
                "the path; a gated or private model needs its terms accepted and HF_TOKEN"
            ) from error
        at = f" --revision={revision}" if revision else ""
        raise InputError(
            f"{source}: there is no such folder here, and it cannot be had from the Hugging Face hub ({type(error).__name__}: {said}). Where there "
            f"is a network, `hf download {name}{at} --local-dir=DIR` gets it: bring DIR here and name it; or take a small model, "
            "`python -m reft_jax.models.fetch smollm2_135m --to=DIR`"
        ) from error
