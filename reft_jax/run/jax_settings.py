"""JAX's settings for a run: the precision of products, and where compiled programs are kept."""

import hashlib
import pathlib
import platform


def multiply_in(compute_dtype: str):
    """Makes float32 mean float32: left alone, GPUs multiply it in TF32 (10 bits) and TPUs in bfloat16 (7 bits), and the
    sampler's log-probabilities are then not the scorer's."""
    import jax

    if compute_dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")


def keep_compiled(workdir: pathlib.Path):
    """Compiled programs stay in .jax_cache beside the workdir, for the runs that follow, unless JAX_COMPILATION_CACHE_DIR names another
    place (a bucket, say). A CPU's are for processors with the same instructions alone."""
    import jax

    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = workdir.parent / ".jax_cache"
    if jax.default_backend() == "cpu":
        folder /= instruction_set()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def instruction_set() -> str:
    """A name for what this processor can execute."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    words = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256(f"{platform.machine()} {words}".encode()).hexdigest()[:16]
