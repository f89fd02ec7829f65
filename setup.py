"""The package: what it needs at run time, and the extras for tests, TPUs and GPUs.

Here stand the lowest versions that are known to work; `launch/constraints.txt` holds the exact ones that the project
is tested with.  By hand, in an environment of your own:

    pip install -c launch/constraints.txt -e '.[test]'     # or [gpu], [tpu], several: '.[gpu,test]'
"""

import pathlib
import re

from setuptools import find_packages, setup

INIT = pathlib.Path(__file__).parent / "reft_jax" / "__init__.py"
[VERSION] = re.findall(r'^__version__ = "(.+?)"', INIT.read_text(encoding="utf-8"), re.MULTILINE)

RUN_TIME = [
    "absl-py>=2.1",
    "flax>=0.12.8",
    "jax>=0.10.2",
    "jinja2>=3.1",  # chat templates
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    # system-call filters around model-written programs, where the system has libseccomp.so.2
    'pyseccomp>=0.1.2; platform_system == "Linux"',
    "safetensors>=0.5",
    "sympy>=1.13",
    "tensorboardx>=2.6",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5.0",
]

EXTRAS = {
    "test": [
        # Fuzzing of answer extraction: tests/fuzz_answer.py.
        "atheris>=3.0; platform_system == 'Linux' and platform_machine == 'x86_64' and python_version < '3.14'",
        "axe-core-python>=0.1",  # accessibility of report.html, in Chromium through selenium
        "hypothesis>=6.100",
        # The notebooks in colabs/ are run.
        "ipykernel>=6.29",
        "libtpu>=0.0.42; platform_system == 'Linux' and platform_machine == 'x86_64'",  # the compiler alone, no TPU
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "qwix>=0.1.8",
        "ruff>=0.9",
        "selenium>=4.40",
    ],
    # Second opinions on whole models, used by tests only; they skip themselves where these are not installed.
    "parity": ["torch>=2.9", "xllamacpp>=2026.1"],
    # Adapters over a base in 8 or 4 bits.
    "qlora": ["qwix>=0.1.8"],
    # model=FILE.gguf
    "gguf": ["gguf>=0.17"],
    # config.data.source="tfds". TFDS 4.9 asks for importlib_resources only through older etils.
    "tfds": [
        "array-record>=0.8; platform_system == 'Linux'",
        "importlib-resources>=6.0",
        "tensorflow-datasets>=4.9.10",
    ],
    # config.logging.wandb
    "wandb": ["wandb>=0.19"],
    # Hugging Face directories and report.html need nothing beyond the core; who asks for these extras gets no warning.
    "hf": [],
    "report": [],
    "gpu": ["jax[cuda12]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
}
EXTRAS["test"] += EXTRAS["gguf"] + EXTRAS["tfds"]

setup(
    name="reft_jax",
    version=VERSION,
    description="Reinforced fine-tuning (ReFT) of language models for reasoning, in JAX",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    # reft_jax/configs is a link to configs/, which is no package: a user's own folder of that name keeps its place on the path
    packages=[*find_packages(include=["reft_jax", "reft_jax.*"]), "reft_jax.configs"],
    package_data={"reft_jax": ["assets/**/*", "tasks/tfds/checksums.tsv"]},
    entry_points={"console_scripts": ["reft = reft_jax.__main__:main"]},
    install_requires=RUN_TIME,
    extras_require=EXTRAS,
)
