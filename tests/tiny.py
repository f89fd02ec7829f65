"""What several tests share: the folder of real data, and small models."""
import os
import pathlib

import pytest


def shared_data() -> pathlib.Path:
    """The folder of real data sets (`REFT_DATA`, or ../shared/data beside the checkout); skips the test without it."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("REFT_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder} (set REFT_DATA)")
    return folder
