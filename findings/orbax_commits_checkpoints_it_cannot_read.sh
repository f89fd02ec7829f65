#!/usr/bin/env bash
# In a folder whose name holds [1] or a backslash, Orbax on Linux saves and commits a checkpoint that it cannot restore. A guess would be that any
# name that the file system allows is as good as another, or that saving fails where restoring would.
#
# Seen with orbax-checkpoint 0.12.8, tensorstore 0.1.86, etils 1.15.0 and jax 0.10.2 (Python 3.11). Both saves end without an error or a warning, and
# commit_success.txt is there. a[1]/params has the arrays in ocdbt.process_0 but no manifest.ocdbt above it: the folders of the processes, which
# finalizing merges, are looked for by a glob over the whole path, in which [1] stands for the letter 1. Of b\c/params the arrays lie in
# b/c/params.orbax-checkpoint-tmp, another folder: TensorStore's file driver reads a backslash as a separator here, Python's part of Orbax does
# not. Restoring raises "NOT_FOUND ... Metadata at x/.zarray" for both. a*b, a?b and 100% are restored: as patterns they match themselves.
# In a[1] nothing is lost: renamed to a plain folder, and with ocdbt.process_0/manifest.ocdbt and d/ put one folder up, it is restored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check orbax-checkpoint==0.12.8 tensorstore==0.1.86 etils==1.15.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/look.py" <<'PYTHON'
import logging, pathlib, shutil, sys
import jax, jax.numpy as jnp
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
base = pathlib.Path(sys.argv[1])
like = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}


def restored(path):
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(path, like)["x"].tolist() == [0, 1, 2]
    except ValueError as error:
        return "NOT_FOUND" in str(error) and "not found"


for name in ("a*b", "a?b", "100%", "a[1]", "b\\c"):
    path = base / name / "params"
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, {"x": jnp.arange(3.0)})
    files = {str(one.relative_to(path)) for one in path.rglob("*")}
    print(name, "commit_success.txt" in files, "manifest.ocdbt" in files, restored(path))
print((base / "b" / "c" / "params.orbax-checkpoint-tmp" / "ocdbt.process_0" / "manifest.ocdbt").is_file())
plain = shutil.copytree(base / "a[1]", base / "plain") / "params"
for one in ("manifest.ocdbt", "d"):
    (plain / "ocdbt.process_0" / one).rename(plain / one)
print(restored(plain))
PYTHON
export JAX_PLATFORMS=cpu
seen=$("$python" "$folder/look.py" "$folder/saved" 2>/dev/null)
expected='a*b True True True
a?b True True True
100% True True True
a[1] True False not found
b\c True False not found
True
True'
diff <(echo "$expected") <(echo "$seen") # ends the script where it is otherwise than stated
echo "as stated: saved and committed, and not to be restored"
