"""Every golden file whose algorithm exists here, values and gradients in float32.

The folder is named by GOLDEN_DIR (default tests/data/golden); its files come with the reference sheets.
"""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlmrl.algorithms import kl
from jaxvlmrl.algorithms.gae import gae, normalise
from jaxvlmrl.algorithms.vl_dac import VLDAC, Steps

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "data" / "golden"))


def run_gae(x: dict) -> dict:
    flags = [x["not_done"] == 0, x["not_trunc"] == 0]
    truncated, terminated = flags[1], flags[0] & ~flags[1]
    results = {}
    for time_limits in ("ends_are_terminal", "zero_at_truncation", "bootstrap_final_obs"):
        of_one = partial(gae, gamma=x["gamma"], lam=x["lam"], time_limits=time_limits)
        columns = (x["rewards"], x["values"], x["final_values"], terminated, truncated)
        advantage = jax.vmap(of_one, in_axes=1, out_axes=1)(*columns)
        results[time_limits] = {
            "adv": advantage,
            "returns": advantage + x["values"][:-1],
            "adv_normalised_eps1e8": normalise(advantage, 1e-8),
            "adv_normalised_eps1e5": normalise(advantage, 1e-5),
        }
    return results


def run_vl_dac(x: dict) -> dict:
    steps = Steps(x["mask"] > 0, x["lp_old"], x["lp_ref"], x["adv"], x["v_old"], x["ret"])
    results = {}
    for form in ("paper", "released_code"):
        algorithm = VLDAC(clip_eps=x["clip"], kl_coef=x["beta"], value_coef=x["alpha"], form=form)
        no_entropy = jnp.zeros_like(x["lp_new"])

        def total(lp, v, algorithm=algorithm, no_entropy=no_entropy):
            loss = algorithm.loss(lp, no_entropy, v, steps)
            return loss.total, loss

        (grads, loss) = jax.grad(total, argnums=(0, 1), has_aux=True)(x["lp_new"], x["v_new"])
        warmup = algorithm.loss(x["lp_new"], no_entropy, x["v_new"], steps, is_warmup=True)
        mask = steps.is_action_token
        terms = {
            "paper": {
                "value": loss.value,
                "token_policy_terms": jnp.where(mask, algorithm.policy_terms(x["lp_new"], steps)[0], 0.0),
                "token_kl_terms": jnp.where(mask, kl.k3(x["lp_new"], x["lp_ref"]), 0.0),
                "clip_fraction": loss.clip_fraction,
            },
            "released_code": {"value_weighted": loss.value, "warmup_total": warmup.total},
        }[form]
        shared = {"policy": loss.policy, "kl": loss.kl, "total": loss.total}
        results[form] = shared | terms | {"grad_lp_new": grads[0], "grad_v_new": grads[1]}
    return results


def run_kl_estimators(x: dict) -> dict:
    results = {}
    for name, estimator in kl.ESTIMATORS.items():
        results[name] = estimator(x["lp_new"], x["lp_ref"])
        results[f"grad_{name}"] = jax.grad(lambda lp, f=estimator: jnp.sum(f(lp, x["lp_ref"])))(x["lp_new"])
    return results


RUNNERS = {"gae": run_gae, "vl_dac": run_vl_dac, "kl_estimators": run_kl_estimators}


def cases() -> list:
    found = []
    for name in RUNNERS:
        path = FOLDER / f"{name}.json"
        if path.exists():
            found += [
                pytest.param(name, case, id=f"{name}-{case['name']}") for case in json.loads(path.read_text())["cases"]
            ]
    return found


def test_there_are_golden_files():
    assert cases(), f"{FOLDER} holds no golden file of {', '.join(RUNNERS)}"


@pytest.mark.parametrize(("name", "case"), cases())
def test_golden(name: str, case: dict):
    inputs = {k: jnp.asarray(v, jnp.float32) if isinstance(v, list) else v for k, v in case["inputs"].items()}
    arrays = {k: v for k, v in inputs.items() if hasattr(v, "shape")}
    found = jax.jit(lambda arrays: RUNNERS[name](inputs | arrays))(arrays)
    compare(found, case["expected"], case["name"])


def compare(got, expected, path: str) -> None:
    """Every expected key, with |x - e| <= 1e-5 |e| + 1e-6 for each element."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in got, f"{path}: nothing computes {key}"
            compare(got[key], value, f"{path}.{key}")
        return
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected, np.float64), rtol=1e-5, atol=1e-6, err_msg=path)
