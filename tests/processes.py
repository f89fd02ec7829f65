"""Starts `tests.two_processes` as several processes and gives what process 0 pickled."""

import os
import pickle
import socket
import subprocess
import sys

from tests import runs


def together(what: str, folder, *, num: int = 2, devices: int = 2):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = dict(JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    command = [sys.executable, "-m", "tests.two_processes"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes = [
        subprocess.Popen(
            [*command, str(i), str(num), port, what, f"{folder}/out"], cwd=runs.ROOT, env=os.environ | flags, **pipes
        )
        for i in range(num)
    ]
    try:
        outs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * num, outs
    with open(f"{folder}/out", "rb") as file:
        return pickle.load(file)
