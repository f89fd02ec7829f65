#!/usr/bin/env bash
# `import flax.nnx` brings in all of IPython, where that is installed, and all of optax.contrib: not when a model is shown in a notebook, but at
# the import, in every process. A guess would be that a plain script never loads them.
#
# Seen with flax 0.12.8, jax 0.10.2, optax 0.2.8, IPython 9.7.0 (Python 3.11): after `import flax.nnx` alone, sys.modules holds IPython
# and optax.contrib; with IPython not installed the same import works without it. So every
# command of an environment with a notebook in it pays for that import (python -X importtime names it), though it shows nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 numpy==2.4.0
look='
import sys, flax.nnx
print("IPython", "IPython" in sys.modules, "optax.contrib", "optax.contrib" in sys.modules)
'
export JAX_PLATFORMS=cpu
[ "$("$python" -c "$look")" = "IPython False optax.contrib True" ]
"$python" -m pip install -q --disable-pip-version-check ipython==9.7.0
[ "$("$python" -c "$look")" = "IPython True optax.contrib True" ]
echo "as stated: flax.nnx imports IPython where it is installed"
