# shellcheck shell=bash
# Makes .venv in the project's root; sourced by demo.sh and test.sh, which call `setup_env ROOT [EXTRA]`, and by table.sh.
#
# .venv/stamp names what has been installed, so a second call takes a moment and needs no network.  A changed setup.py,
# pyproject.toml or constraints.txt, or a moved project, is installed again.  .venv/unfinished exists while pip works:
# an environment left like that, or without a working Python, is made anew.  pip's own words are in .venv/setup.log.
# Set PYTHON to choose the interpreter (3.11 or newer) that a new .venv is made with.

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# Prints the first interpreter that is new enough and can make environments. Each is tried, not just looked up: version
# managers put names on PATH that only say that the version is not there.
find_python() {
    local candidate candidates=(python3 python3.11 python3.12 python3.13 python3.14 python)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; assert sys.version_info >= (3, 11); import ensurepip, venv' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer with the venv module among: ${candidates[*]}. Install one (on Debian and Ubuntu:" \
        "apt install python3 python3-venv) or name it: PYTHON=/path/to/python3.11 bash launch/..."
}

# Has .venv a Python of its own that runs, is new enough and has pip?
usable() {
    "$1/bin/python" -I -c 'import sys; assert sys.version_info >= (3, 11) and sys.prefix != sys.base_prefix; import pip' \
        >/dev/null 2>&1
}

# Does .venv find this very checkout (it may have been moved or copied) and the packages that take longest to install?
complete() {
    "$1/bin/python" -I - "$2" >/dev/null 2>&1 <<'PYTHON'
import importlib.util
import os
import sys

found = importlib.util.find_spec("reft_jax")
assert os.path.samefile(os.path.dirname(os.path.dirname(found.origin)), sys.argv[1])
assert all(map(importlib.util.find_spec, ("jax", "flax", "optax", "tokenizers", "transformers")))
PYTHON
}

# pip without its chatter; bytecode is left to Python's first import, which compiles the few modules that are used.
quiet_pip() {
    local venv=$1
    shift
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --no-compile -c launch/constraints.txt "$@" \
        >>"$venv/setup.log" 2>&1
}

install_project() {
    local venv=$1 root=$2 what=$3
    # The builder comes first, from the same pins: pip's isolated builds ignore constraints and fetch whatever is newest.
    if ! quiet_pip "$venv" setuptools || ! quiet_pip "$venv" --no-build-isolation -e "$what"; then
        { grep -vE '^(WARNING|Requirement already)' "$venv/setup.log" || true; } | tail -n 20 >&2
        # An earlier installation that pip gave up adding to (no network, mostly) is as good as it was.
        if [ -e "$venv/stamp" ] && complete "$venv" "$root"; then rm "$venv/unfinished"; fi
        fail "pip could not install $what (no network, or no build of a package for this Python?)." \
            "All it said: $venv/setup.log. The same command tries again."
    fi
}

# PyTorch is the second opinion of some tests, which skip themselves without it: worth a try, never a failure. The CPU
# build is asked for by name, because on Linux the plain name brings gigabytes of CUDA.
try_torch() {
    local venv=$1 torch=${REFT_TORCH:-torch==2.13.0+cpu}
    if quiet_pip "$venv" --retries 1 "$torch"; then return; fi
    say "pip finds no $torch for this Python: tests that compare with PyTorch will skip themselves" \
        "(to have them run all the same: .venv/bin/python -m pip install torch==2.13.0)."
}

# For small models on a CPU. glibc gives a step's temporaries back to the system, which zeroes the same pages for the next one: about a
# fourth of an update. With these (2.35 and newer) they stay. A GLIBC_TUNABLES of your own, also an empty one, takes their place.
keep_temporaries() {
    export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592}
}

setup_env() {
    local root=$1 extra=${2:-} venv=$1/.venv pins enough start=$SECONDS
    unset PYTHONHOME PYTHONPATH
    cd "$root" || fail "cannot enter $root"
    pins=$(cat setup.py pyproject.toml launch/constraints.txt | cksum | cut -d ' ' -f 1)
    enough="$pins (${extra:-run|test})" # what has the extra can also run

    # Two commands at once on a fresh clone: the second waits, rather than take the first one's work for a ruin.
    if command -v flock >/dev/null; then
        exec 9<"$root"
        if ! flock -n 9; then
            say "Waiting for another command that is setting up .venv ..."
            flock 9 || true
        fi
    fi
    if [ ! -e "$venv/unfinished" ] && grep -qxE "$enough" "$venv/stamp" 2>/dev/null && complete "$venv" "$root"; then
        exec 9<&-
        return
    fi
    if [ -d "$venv" ] && { [ -e "$venv/unfinished" ] || ! usable "$venv"; }; then
        say "Found a half-made or broken .venv: making it anew."
        rm -rf "$venv"
    fi
    if [ ! -d "$venv" ]; then
        local python
        python=$(find_python) || exit 1
        say "Making .venv with $("$python" --version) ($python) ..."
        { mkdir "$venv" && touch "$venv/unfinished"; } || fail "cannot write in $root"
        "$python" -m venv "$venv" >>"$venv/setup.log" 2>&1 || fail "$python could not make it; see $venv/setup.log"
    fi
    say "Installing reft_jax${extra:+ with its [$extra] extra} into .venv (pinned by launch/constraints.txt) ..."
    touch "$venv/unfinished"
    install_project "$venv" "$root" ".${extra:+[$extra]}"
    if [ "$extra" = test ]; then try_torch "$venv"; fi
    printf '%s\n' "$pins ${extra:-run}" >"$venv/stamp"
    rm "$venv/unfinished"
    exec 9<&-
    say "Done in $((SECONDS - start)) s."
}
