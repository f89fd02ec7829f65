#!/usr/bin/env bash
# pytest.approx around a JAX array works, until a tolerance is given: then making the approx raises NotImplementedError, before anything is compared.
# A guess would be that a scalar loss is as good an expected value as NumPy's, with or without rel=; and that hasattr never raises.
#
# Seen with pytest 9.2.0 and jax 0.10.2 (Python 3.11): approx(jnp.float32(1)) == 1.0 is True; approx(jnp.float32(1), rel=1e-6), and so abs= and arrays,
# raises "JAX Arrays do not implement the arr.flat property". This pytest looks whether the expected value holds Decimals once a tolerance is given,
# by getattr(expected, "flat", expected); jax's `flat` raises NotImplementedError, which is no AttributeError, so that the default of getattr, and
# hasattr, do not catch it. With pytest 8.4.2 the same line is True. np.float32 (or float) around the expected value works with both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install -q --disable-pip-version-check pytest==9.2.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.0
look='
import jax.numpy as jnp, numpy as np, pytest
def told(make):
    try:
        return make()
    except NotImplementedError as error:
        return "arr.flat" in str(error) and "raised"
one = jnp.float32(1)
print(*(told(make) for make in (
    lambda: 1.0 == pytest.approx(one),
    lambda: 1.0 == pytest.approx(one, rel=1e-6),
    lambda: np.ones(2) == pytest.approx(jnp.ones(2), abs=1e-6),
    lambda: 1.0 == pytest.approx(np.float32(one), rel=1e-6),
    lambda: hasattr(one, "flat"),
)))
'
export JAX_PLATFORMS=cpu
[ "$("$python" -c "$look")" = "True raised raised True raised" ]
"$python" -m pip install -q --disable-pip-version-check pytest==8.4.2
[ "$("$python" -c "$look")" = "True True True True raised" ]
echo "as stated: a tolerance makes pytest.approx refuse JAX arrays"
