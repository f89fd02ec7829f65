"""Every test sees 8 CPU devices, strict dtype promotion and no silent rank promotion; warnings are errors (pyproject.toml)."""

import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may look anything up

import jax  # noqa: E402  (the devices are counted when JAX is first used)
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # of the machine code: compiling is what these tests cost


def pytest_configure(config):
    if (
        "REFT_TESTS_SCRATCH" not in os.environ
    ):  # of the whole session: the processes beside this one are started with it
        os.environ["REFT_TESTS_SCRATCH"] = folder = tempfile.mkdtemp(prefix="reft_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    # Compiled once is compiled for the tests that follow, here and in processes beside this one.
    if config.pluginmanager.hasplugin("cacheprovider"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_compilation_cache_max_size", 200 * 2**20)
        os.environ["REFT_TESTS_COMPILED"] = str(config.cache.mkdir("runs"))  # tests/runs.py


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    assert jax.device_count() == 8 and jax.devices()[0].platform == "cpu"
