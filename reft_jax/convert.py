"""Hugging Face safetensors <-> the project's checkpoints, and GGUF files -> Hugging Face directories.

    python -m reft_jax.convert --from=DIR|FILE.gguf --to=DIR [--dtype=float32|bfloat16]

From a Hugging Face directory: TO gets `checkpoints/0` (the parameters, for `init_from=TO`) and `tokenizer/` (config.json and
the tokenizer's files). From a checkpoint (a stage's folder, or one of its checkpoints/<step>): TO becomes a Hugging Face
directory; of a finished stage it is the checkpoint that the stage chose, else the last; the tokenizer and config.json are
those of the workdir that it lies in. From a GGUF file: TO becomes a Hugging Face directory, with the tokenizer that the file holds.
Both ways are bit for bit where --dtype (float32 or bfloat16) is what the weights are stored in. Exit codes are main's.
"""

import pathlib
import sys

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.config.paths import expanded
from reft_jax.errors import InputError

FLAGS = {
    "--from": Flag(expanded, needed=True),
    "--to": Flag(expanded, needed=True),
    "--dtype": Flag(commands.one_of("float32", "bfloat16"), default="float32"),
}


def parse(argv: list[str]) -> tuple[pathlib.Path, pathlib.Path, str]:
    """(from, to, dtype) of the command line. Raises InputError."""
    return tuple(commands.parse(argv, __doc__, FLAGS).values())


def from_hugging_face(source: pathlib.Path, target: pathlib.Path, dtype: str):
    """HF_DIR -> TO/checkpoints/0 and TO/tokenizer."""
    from reft_jax import models
    from reft_jax.data import tokenizer as tokenizers
    from reft_jax.run import checkpoint
    from reft_jax.run.metrics import write_json
    from reft_jax.stages import export

    tokenizer = tokenizers.load(source)
    model, params = models.load_hf(source, param_dtype=dtype)
    tokenizers.check_fits(tokenizer, model.arch.vocab_size, str(source))
    tokenizers.save(tokenizer, target / "tokenizer")
    models.save_config(target / "tokenizer", model, tokenizer)
    ends = tokenizers.end_ids(tokenizer, source)
    write_json(target / "tokenizer" / "generation_config.json", export.generation_config(tokenizer, ends))
    checkpoint.write_params(target / "checkpoints" / "0", params)
    print(f"wrote {target}: use it as init_from, or convert it back")


def from_gguf(source: pathlib.Path, target: pathlib.Path, dtype: str):
    """FILE.gguf -> a Hugging Face directory, read again and compared."""
    from reft_jax import models
    from reft_jax.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(source)
    model, params = models.load_hf(source, param_dtype=dtype, compute_dtype=dtype)
    tokenizers.check_fits(tokenizer, model.arch.vocab_size, str(source))
    _write(target, model, params, tokenizer, tokenizers.end_ids(tokenizer, source))


def to_hugging_face(source: pathlib.Path, target: pathlib.Path, dtype: str):
    """A checkpoint -> a Hugging Face directory, read again and compared."""
    from reft_jax import models
    from reft_jax.data import tokenizer as tokenizers
    from reft_jax.run import checkpoint

    chosen = (source / "DONE").is_file() and "selected_step" in checkpoint.facts(source)
    folder = checkpoint.selected(source) if chosen else checkpoint.locate(source)
    if folder is None:
        raise InputError(
            f"--from={source}: neither a Hugging Face directory nor a stage's folder or checkpoint: {checkpoint.why_none(source)}"
        )
    about = [
        parent / "tokenizer"
        for parent in folder.resolve().parents[:3]
        if (parent / "tokenizer" / "config.json").is_file()
    ]
    if not about:
        raise InputError(
            f"--from={source}: no tokenizer/config.json in the folders above {folder}; a checkpoint is converted from inside its workdir"
        )
    tokenizer = tokenizers.load(about[0])
    arch, stored = models.read_config(about[0]), checkpoint.shapes(folder)
    if models.only_adapters(stored):
        raise InputError(
            f"--from={source}: {folder} holds adapters alone; a stage of kind export in the same config merges and writes them"
        )
    # Rows that pad the vocabulary are as many as the run's vocab_multiple made them: they are not written.
    rows = stored["embed"]["kernel"].shape[0]
    multiple = rows if rows >= arch.vocab_size else 1
    model = models.Model(arch, dtype, dtype, vocab_multiple=multiple)
    ours = models.shapes(model)
    wrong = {name for name in ours if _sizes(stored.get(name, {})) != _sizes(ours[name])}
    if wrong:
        raise InputError(
            f"--from={source}: {', '.join(sorted(wrong))} of {folder} have other shapes than {about[0] / 'config.json'} says"
        )
    params = checkpoint.read_params(folder)
    heads = {name: tree for name, tree in params.items() if name not in ours}
    params = _cast({name: params[name] for name in ours}, dtype) | heads
    _write(target, model, params, tokenizer, tokenizers.end_ids(tokenizer, about[0]))


def _write(target: pathlib.Path, model, params, tokenizer, ends: tuple[int, ...]):
    """A Hugging Face directory, read again and compared."""
    from reft_jax.data import tokenizer as tokenizers
    from reft_jax.stages import export

    export.write(target, model, params, tokenizer, ends)
    error = export.compare(target, model, params, [tokenizers.encode(tokenizer, "Question:\n")])
    print(f"wrote {target}; read again, its logits differ by at most {error:.2g}")


def _sizes(tree):
    import jax

    return jax.tree.map(lambda x: x.shape, tree)


def _cast(tree, dtype):
    import jax

    return jax.tree.map(lambda x: x.astype(dtype), tree)


@commands.command()
def main(argv: list[str]) -> int:
    source, target, dtype = parse(argv)
    from reft_jax.data import gguf

    of_gguf = gguf.is_file(source)
    if not source.is_dir() and not of_gguf:
        raise InputError(f"--from={source}: there is no such directory, nor a GGUF file of that name")
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise InputError(f"--to={target}: is there already; choose a new folder")
    from reft_jax import models

    known = models.resolve(str(source)) is not None
    convert = from_gguf if of_gguf else from_hugging_face if known else to_hugging_face
    convert(source, target, dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
