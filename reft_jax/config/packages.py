"""Packages that only some settings need: whether one is installed.

A folder of a package's name in the current directory (`wandb/`, as an earlier run leaves it; `tensorflow_datasets/`) is for Python an
empty package of that name, where the real one is not installed. It is not taken for it here.
"""

import importlib
import importlib.util


def there(name: str) -> bool:
    """Whether the package is installed; it is not imported."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def load(name: str, *attributes: str):
    """The module of that name, which must have these attributes. ImportError where it is not installed, or a file of that name hides it."""
    top = name.partition(".")[0]
    if not there(top):
        spec = importlib.util.find_spec(top)
        folder = f"; {[*spec.submodule_search_locations][0]} is a folder, not the package" if spec else ""
        raise ImportError(f"{top} is not installed{folder}")
    module = importlib.import_module(name)
    if absent := [attribute for attribute in attributes if not hasattr(module, attribute)]:
        raise ImportError(f"{module.__file__} is not the package {name}: it has no {absent[0]}")
    return module
