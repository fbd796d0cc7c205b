"""Every golden file whose algorithm exists here, values and gradients in float32.

The folder is named by GOLDEN_DIR (default tests/data/golden); its files come with the reference sheets. Rows of group files
are episodes of one turn here, rows of step files are steps; where rows name their episode they become columns of turns.
"""

import json
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvlmrl.algorithms import archer, digirl, groups, kl, odysseus, vagen
from jaxvlmrl.algorithms.algorithm import Algorithm, Experience, Steps
from jaxvlmrl.algorithms.archer import Twins
from jaxvlmrl.algorithms.dapo import DAPO
from jaxvlmrl.algorithms.dr_grpo import DrGRPO, GridWalkerGRPO, gridwalker_reward
from jaxvlmrl.algorithms.gae import gae, normalise
from jaxvlmrl.algorithms.gigpo import GiGPO
from jaxvlmrl.algorithms.grpo import GRPO
from jaxvlmrl.algorithms.gtr import GTR
from jaxvlmrl.algorithms.loop import LOOP
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.algorithms.odysseus import Odysseus
from jaxvlmrl.algorithms.reinforce_pp import ReinforcePP
from jaxvlmrl.algorithms.returns import returns_to_go
from jaxvlmrl.algorithms.rl4vlm import RL4VLM
from jaxvlmrl.algorithms.rloo import RLOO
from jaxvlmrl.algorithms.vl_dac import VLDAC
from tests.compiling import AS_USERS_HAVE_IT

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "data" / "golden"))
HOST_ONLY = ("traj", "level_of_traj")  # they say how rows are laid out
# The golden README's one exception: returns of 1 with a spread of 1e-3, which rounding to float32 alone moves by 6e-5.
COARSE = {"zero_std_group_baseline0_gamma1.0": 5e-4}


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


# Steps: a row is a step


def steps_of(x: dict) -> Steps:
    mask = x["mask"] > 0 if "mask" in x else (x["thought_mask"] + x["action_mask"]) > 0
    nothing = jnp.zeros(len(mask))
    return Steps(
        mask, x["lp_old"], x.get("lp_ref", x["lp_old"]), x["adv"], x.get("v_old", nothing), x.get("ret", nothing),
        jnp.ones(len(mask), bool), x["thought_mask"] > 0 if "thought_mask" in x else None,
    )  # fmt: skip


def losses(algorithm: Algorithm, x: dict, steps: Steps):
    """(loss, gradient by log-probs, gradient by values) of rows."""
    value = x.get("v_new", jnp.zeros(len(x["lp_new"])))

    def total(lp, v):
        loss = algorithm.loss(lp, jnp.zeros_like(lp), v, steps)
        return loss.total, loss

    (of_log_prob, of_value), loss = jax.grad(total, argnums=(0, 1), has_aux=True)(x["lp_new"], value)
    return loss, of_log_prob, of_value


def run_vl_dac(x: dict) -> dict:
    steps, results = steps_of(x), {}
    for form in ("paper", "released_code"):
        algorithm = VLDAC(clip_eps=x["clip"], kl_coef=x["beta"], value_coef=x["alpha"], form=form)
        loss, of_log_prob, of_value = losses(algorithm, x, steps)
        no_entropy = jnp.zeros_like(x["lp_new"])
        warmup = algorithm.loss(x["lp_new"], no_entropy, x["v_new"], steps, is_warmup=True)
        mask = steps.is_action_token
        terms = {
            "paper": {
                "value": loss.value,
                "token_policy_terms": jnp.where(mask, algorithm.policy_terms(x["lp_new"], steps)[0], 0.0),
                "token_kl_terms": jnp.where(mask, kl.k3(x["lp_new"], x["lp_ref"]), 0.0),
                "clip_fraction": loss.clip_fraction,
            },
            "released_code": {"value_weighted": x["alpha"] * loss.value, "warmup_total": warmup.total},
        }[form]
        shared = {"policy": loss.policy, "kl": loss.kl, "total": loss.total}
        results[form] = shared | terms | {"grad_lp_new": of_log_prob, "grad_v_new": of_value}
    return results


def run_rl4vlm(x: dict) -> dict:
    algorithm = RL4VLM(clip_eps=x["clip"], value_coef=x["value_coef"], thought_coef=x["lam"])
    steps = steps_of(x)
    loss, of_log_prob, _ = losses(algorithm, x, steps)
    new, old = (algorithm.step_log_prob(x[name], steps) for name in ("lp_new", "lp_old"))
    values = {"policy": loss.policy, "value": loss.value, "total": loss.total, "grad_lp_new": of_log_prob}
    return values | {"seq_lp_new": new, "seq_lp_old": old, "ratio": jnp.exp(new - old)}


def run_gtr(x: dict) -> dict:
    algorithm = GTR(clip_eps=x["clip"], value_coef=x["value_coef"], thought_coef=x["lam"], sft_coef=x["sft_coef"])
    ppo = losses(algorithm, x, steps_of(x))[0].total
    cloning = algorithm.cloning_loss(x["sft_lp"], x["sft_mask"] > 0)
    return {"ppo_total": ppo, "sft": cloning, "total": ppo + x["sft_coef"] * cloning}


def run_archer(x: dict) -> dict:
    twins = lambda first, second: Twins(x[first], x[second])
    q_target = archer.q_targets(x["reward"], x["done"] > 0, twins("target_v1_next", "target_v2_next"), x["gamma"])
    q_loss = archer.mean_squares(twins("q1", "q2"), q_target)
    v_loss = archer.mean_squares(twins("v1", "v2"), twins("target_q1_pi", "target_q2_pi"))
    advantage = archer.advantage(twins("q1_pi", "q2_pi"), twins("v1", "v2"))
    return {
        "q_target_1": q_target.first, "q_target_2": q_target.second, "q1_loss": q_loss.first, "q2_loss": q_loss.second,
        "v1_loss": v_loss.first, "v2_loss": v_loss.second, "adv": advantage,
        "actor_loss": archer.actor_loss(x["lp_pi"], x["mask"] > 0, advantage),
        "polyak_example": archer.polyak(x["target_param"], x["online_param"], x["tau"]),
    }  # fmt: skip


def run_digirl(x: dict) -> dict:
    value, next_value = Twins(x["v1"], x["v2"]), Twins(x["nv1"], x["nv2"])
    keep = digirl.is_kept(value, next_value, x["reward"], x["mc_return"], x["margin"])
    loss, grad = jax.value_and_grad(digirl.loss)(x["lp_new"], x["mask"] > 0, keep)
    return {"keep": keep.astype(jnp.float32), "loss": loss, "grad_lp_new": grad}


def run_odysseus_policy(x: dict) -> dict:
    algorithm = Odysseus(clip_low=x["clip_low"], clip_high=x["clip_high"], dual_clip=x["dual_clip"])
    steps = steps_of(x)
    loss, of_log_prob, _ = losses(algorithm, x, steps)
    terms = jnp.where(steps.is_action_token, algorithm.policy_terms(x["lp_new"], steps)[0], 0.0)
    return {"token_terms": terms, "loss": loss.policy, "grad_lp_new": of_log_prob}


# Groups: a row is an episode, here one of a single turn


def experience_of(x: dict) -> Experience:
    count = len(x["R"])
    flag, of_turns = jnp.ones((1, count), bool), jnp.zeros((1, count))
    return Experience(
        x["R"][None], jnp.zeros((2, count)), of_turns, flag, ~flag, flag, x["gid"].astype(jnp.int32),
        jnp.zeros((1, count), jnp.int32), x["mask"][None] > 0, x["lp_old"][None], x.get("lp_ref", x["lp_old"])[None],
    )  # fmt: skip


def episode_loss(algorithm: Algorithm, x: dict, advantage: jax.Array, keep: jax.Array | None = None) -> dict:
    mask = x["mask"] > 0 if keep is None else (x["mask"] > 0) & keep[:, None]
    nothing, flag = jnp.zeros((len(mask), 1)), jnp.ones((len(mask), 1), bool)
    of_turn = lambda rows: rows[:, None]
    reference = x.get("lp_ref", x["lp_old"])
    steps = Steps(
        *map(of_turn, (mask, x["lp_old"], reference)),
        advantage[:, None], nothing, nothing, flag,
    )  # fmt: skip
    total = lambda lp: algorithm.loss(lp[:, None], jnp.zeros_like(lp)[:, None], nothing, steps).total
    loss, grad = jax.value_and_grad(total)(x["lp_new"])
    return {"loss": loss, "grad_lp_new": grad}


def run_group(make, x: dict) -> dict:
    algorithm = make(x)
    credit = algorithm.credit(experience_of(x))
    return {"adv": credit.advantage[0], "shaped_return": credit.returns[0]} | episode_loss(
        algorithm, x, credit.advantage[0]
    )


def run_dapo(x: dict) -> dict:
    algorithm = DAPO(
        clip_low=x["clip_low"], clip_high=x["clip_high"], std_eps=x["eps"],
        max_tokens=x["L_max"], cached_tokens=x["L_cache"],
    )  # fmt: skip
    shaped, keep, advantage = algorithm.shape(x["R"], x["acc"], x["length"], groups.alike(x["gid"]))
    found = {"length_penalty": algorithm.length_penalty(x["length"]), "shaped_return": shaped, "adv": advantage}
    return found | {"keep": keep.astype(jnp.float32)} | episode_loss(algorithm, x, advantage, keep)


def run_loop(x: dict) -> dict:
    algorithm = LOOP(clip_high=x["clip"], least_advantage=x["adv_threshold"], divisor=x["loss_divisor"])
    credit = algorithm.credit(experience_of(x))
    keep = credit.is_kept[0]
    found = {"adv": credit.advantage[0], "keep": keep.astype(jnp.float32)}
    return found | episode_loss(algorithm, x, credit.advantage[0], keep)


def run_reinforce_pp(x: dict) -> dict:
    algorithm = ReinforcePP(
        clip_low=x["clip"], clip_high=x["clip"], kl_coef=x["beta"], token_gamma=x["gamma"],
        has_group_baseline=bool(x["use_group_baseline"]),
    )  # fmt: skip
    outcome = algorithm.advantage(x["R"], groups.alike(x["gid"]))
    tokens = algorithm.of_tokens(outcome, x["mask"][None] > 0, x["lp_old"][None], x["lp_ref"][None])
    reward, returns, advantage = (part[0] for part in tokens)
    found = {"token_reward": reward, "returns": returns, "adv": advantage}
    return found | episode_loss(algorithm, x, advantage[:, None][:, 0])


def run_gridwalker_reward(x: dict) -> dict:
    of = lambda name: jnp.float32(x[name])
    return {"reward": gridwalker_reward(of("won") > 0, of("think_turns"), of("turns"), of("invalid") > 0)}


# Episodes of several turns: rows name their episode and become columns


class Columns:
    """Where rows stand in [T, B]."""

    def __init__(self, episode: np.ndarray):
        names, self.column = np.unique(episode, return_inverse=True)
        self.turn = np.array([np.sum(self.column[:row] == self.column[row]) for row in range(len(episode))])
        self.place = np.full((self.turn.max() + 1, len(names)), -1)
        self.place[self.turn, self.column] = np.arange(len(episode))
        self.is_played = jnp.asarray(self.place >= 0)

    def of(self, rows: jax.Array) -> jax.Array:
        return jnp.where(self.is_played, rows[np.maximum(self.place, 0)], 0)

    def rows(self, columns: jax.Array) -> jax.Array:
        return columns[self.turn, self.column]


def run_gigpo(x: dict) -> dict:
    columns = Columns(x["traj"])
    group, outcome = (x[name][columns.place[0]] for name in ("gid", "R_episode"))
    returns = returns_to_go(columns.of(x["step_reward"]), columns.is_played, x["gamma"])
    found = {"step_return": columns.rows(returns)}
    for name, baseline in (("per_trajectory", "episode"), ("per_step_row", "step")):
        algorithm = GiGPO(is_z_score=bool(x["norm_std"]), std_eps=x["eps"], omega=x["omega"], baseline=baseline)
        ids = group.astype(jnp.int32), columns.of(x["anchor"]).astype(jnp.int32)
        of_episode = columns.rows(algorithm.of_episodes(outcome, ids[0], columns.is_played))
        of_step = columns.rows(algorithm.of_steps(returns, *ids, columns.is_played))
        found |= {f"adv_episode_{name}": of_episode, "adv_step": of_step}
        found[f"adv_{name}"] = of_episode + x["omega"] * of_step
    return found


def run_odysseus_advantage(x: dict) -> dict:
    columns = Columns(x["traj"])
    reward, value, tokens = (columns.of(x[name]) for name in ("reward", "value", "n_tok"))
    returns = returns_to_go(reward, columns.is_played, x["gamma"])
    found = {"return_to_go": returns, "raw_adv": returns - value}

    def advantage(**fields) -> jax.Array:
        algorithm = Odysseus(gamma=x["gamma"], **fields)
        return algorithm.advantage(reward, returns, value, columns.is_played, tokens.astype(jnp.int32))

    for form in ("paper", "code"):
        found[f"adv_ppo_{form}"] = advantage(form=form, keeps_only_positive=False)
        found[f"adv_pos_{form}"] = advantage(form=form)
    found["actor_rows_kept"] = (found["adv_pos_code"] > 0).astype(jnp.float32)
    for name in ("grpo_outcome", "grpo_process"):
        found[f"adv_{name}"] = advantage(estimator=name, keeps_only_positive=False)
    found["adv_grpo_process_pos"] = advantage(estimator="grpo_process")
    found["adv_reinforce_pp_turn"] = advantage(estimator="reinforce_pp", keeps_only_positive=False)
    found = {name: columns.rows(part) for name, part in found.items()}
    error = (returns - value) / x["value_scale"]
    found["critic_loss_paper"] = masked_mean(odysseus.smooth_l1(returns - value), columns.is_played)
    found["critic_loss_scaled"] = masked_mean(odysseus.smooth_l1(error), columns.is_played)
    levels = np.asarray(x["level_of_traj"])[np.unique(x["traj"]).astype(int)].astype(np.int32)
    turns = jnp.sum(columns.is_played, axis=0).astype(jnp.float32)
    mean_turns, chances = odysseus.level_probabilities(turns, jnp.asarray(levels), int(max(x["level_of_traj"])) + 1)
    return found | {"level_mean_length": mean_turns, "level_probs": chances}


def run_vagen_gae(x: dict) -> dict:
    mask, ends, value = x["mask"] > 0, x["turn_end"] > 0, x["value"]
    turn, lam = x["gamma_turn"], x["lam"]
    each = lambda of_row, *columns: jax.vmap(of_row)(x["reward"], value, *columns)
    masked = each(lambda r, v, m: vagen.masked_gae(r, v, m, x["gamma"], lam), mask)
    bi_level = each(lambda r, v, m, e: vagen.bi_level_gae(r, v, m, e, turn, x["gamma_token"], lam), mask, ends)
    turn_wise = each(lambda r, v, m, e: vagen.turn_wise_gae(r, v, m, e, turn, lam), mask, ends)
    of_turn = each(lambda r, v, e: vagen.turn_gae(r, v, e, turn, lam), ends)
    kept = lambda x: jnp.where(mask, x, 0.0)
    told = lambda raw, counts: {"raw_adv": raw, "adv": kept(vagen.whiten(raw, counts))}
    return {
        "masked_gae": told(masked, mask) | {"returns": kept(masked + value)},
        "bi_level_gae": told(bi_level, mask) | {"returns": kept(bi_level + value), "turn_adv": of_turn},
        "turn_wise_gae": told(turn_wise, ends) | {"returns": jnp.where(ends, of_turn + value, 0.0)},
    }


def run_kl_estimators(x: dict) -> dict:
    results = {}
    for name, estimator in kl.ESTIMATORS.items():
        results[name] = estimator(x["lp_new"], x["lp_ref"])
        results[f"grad_{name}"] = jax.grad(lambda lp, f=estimator: jnp.sum(f(lp, x["lp_ref"])))(x["lp_new"])
    return results


def both_clips(x: dict) -> dict:
    return {"clip_low": x["clip"], "clip_high": x["clip"]}


RUNNERS = {
    "archer": run_archer,
    "dapo": run_dapo,
    "digirl": run_digirl,
    "dr_grpo": partial(run_group, lambda x: DrGRPO(length=x["const"], **both_clips(x))),
    "gae": run_gae,
    "gigpo": run_gigpo,
    "gridwalker_grpo": partial(
        run_group, lambda x: GridWalkerGRPO(length=x["const"], kl_coef=x["beta"], **both_clips(x))
    ),
    "gridwalker_reward": run_gridwalker_reward,
    "grpo": partial(run_group, lambda x: GRPO(kl_coef=x["beta"], std_eps=x["eps"], **both_clips(x))),
    "gtr": run_gtr,
    "kl_estimators": run_kl_estimators,
    "loop": run_loop,
    "odysseus_advantage": run_odysseus_advantage,
    "odysseus_policy": run_odysseus_policy,
    "reinforce_pp": run_reinforce_pp,
    "rl4vlm": run_rl4vlm,
    "rloo": partial(run_group, lambda x: RLOO(kl_coef=x["beta"])),
    "vagen_gae": run_vagen_gae,
    "vl_dac": run_vl_dac,
}


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
    inputs |= {k: np.asarray(v) for k, v in case["inputs"].items() if k in HOST_ONLY}
    arrays = {k: v for k, v in inputs.items() if isinstance(v, jax.Array)}
    found = jax.jit(lambda arrays: RUNNERS[name](inputs | arrays), compiler_options=AS_USERS_HAVE_IT)(arrays)
    compare(found, case["expected"], case["name"])


def compare(got, expected, path: str) -> None:
    """Every expected key, with |x - e| <= 1e-5 |e| + 1e-6 for each element."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in got, f"{path}: nothing computes {key}"
            compare(got[key], value, f"{path}.{key}")
        return
    atol = COARSE.get(path.split(".adv")[0].split(".loss")[0].split(".grad")[0], 1e-6)
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected, np.float64), rtol=1e-5, atol=atol, err_msg=path)
