"""The update as a whole: one program, and each promise of VL-DAC kept through the real network."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.wrappers import Levels
from jaxvlmrl import rollout
from jaxvlmrl.models.critics import CNNCritic, ValueHead
from jaxvlmrl.rollout_metrics import collapse
from jaxvlmrl.update import ActorCritic, When
from tests.small import fresh, largest, make_actor_critic, make_config, with_algorithm


def when(is_warmup: bool = False) -> When:
    return When(jnp.bool_(is_warmup), jnp.float32(0.0))


def started(critic=None, **algorithm):
    config = with_algorithm(make_config(), **algorithm)
    actor_critic, env_params = make_actor_critic(config, critic)
    learner = jax.jit(lambda params: actor_critic.init(params, env_params, jax.random.key(5)))(fresh(config))
    return actor_critic, env_params, learner


@pytest.fixture(scope="module")
def updates():
    """Learners before and after a warm-up update and one more, with their metrics; and the program's text."""
    actor_critic, env_params, learner = started(warmup_updates=1)
    step = jax.jit(lambda learner, index: actor_critic.step(learner, {}, env_params, jax.random.key(6), index))
    lowered = step.lower(learner, jnp.int32(0))
    step = lowered.compile()
    first, first_metrics = step(learner, jnp.int32(0))
    second, second_metrics = step(first, jnp.int32(1))
    return (learner, first, second), (first_metrics, second_metrics), lowered.as_text()


def test_warmup_moves_the_critic_alone(updates):
    (before, first, second), _, _ = jax.device_get(updates)
    difference = lambda a, b: largest(jax.tree.map(np.subtract, a, b))
    assert difference(before.policy, first.policy) == 0
    assert difference(before.policy_optimizer, first.policy_optimizer) == 0
    assert difference(before.critic, first.critic) > 0
    assert difference(first.policy, second.policy) > 0
    assert difference(before.reference, second.reference) == 0


def test_metrics_are_finite_and_the_first_ratio_is_one(updates):
    _, rows, _ = updates
    for metrics in rows:
        assert all(np.isfinite(np.asarray(value)).all() for value in metrics.values())
        assert metrics["ratio/max_gap"] < 1e-4
    shares = sum(float(share) for name, share in rows[0].items() if name.startswith("command/"))
    assert shares == pytest.approx(1.0, abs=1e-6), "constrained answers are all commands"


def test_no_host_callback_in_the_lowered_step(updates):
    _, _, text = updates
    assert "callback" not in text
    assert "infeed" not in text


def test_value_head_sends_a_gradient_into_the_policy_only_without_stop_gradient():
    stopping, env_params, learner = started(ValueHead(stop_gradient=True), value_coef=1.0)
    rows = rows_of(stopping, env_params, learner)

    def gradient(actor_critic: ActorCritic) -> float:
        of_value = lambda policy: actor_critic.loss((policy, learner.critic), {}, rows, when(is_warmup=True))[0]
        return largest(jax.jit(jax.grad(of_value))(learner.policy))

    assert gradient(stopping) == 0
    assert gradient(dataclasses.replace(stopping, critic=ValueHead(stop_gradient=False))) > 0


def rows_of(actor_critic: ActorCritic, env_params, learner):
    """One rollout, ready to be learned from."""

    @jax.jit
    def make(learner):
        trajectory, session = rollout.play(
            actor_critic.policy, learner.policy, actor_critic.env, Levels.only(env_params), learner.session,
            jax.random.key(1), actor_critic.num_turns, read_final=actor_critic.critic.reads_hidden,
        )  # fmt: skip
        value, final_value = actor_critic.judge(learner.critic, trajectory, session)
        played = actor_critic.is_played(trajectory)
        rows, _ = actor_critic.rows(learner, {}, trajectory, value, final_value, played)
        noise = jax.random.normal(jax.random.key(2), rows.steps.advantage.shape)
        return rows._replace(steps=rows.steps._replace(advantage=rows.steps.advantage + noise))

    return make(learner)


def test_gradient_ignores_order_duplicates_and_junk_in_padding():
    actor_critic, env_params, learner = started(CNNCritic())
    rows = rows_of(actor_critic, env_params, learner)
    loss = lambda params, rows: actor_critic.loss(params, {}, rows, when())
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    params = (learner.policy, learner.critic)
    plain, metrics = gradient(params, rows)
    order = jnp.asarray([3, 1, 0, 2])
    variants = {
        "order": jax.tree.map(lambda x: x[order], rows),
        "duplicates": jax.tree.map(lambda x: jnp.concatenate([x, x]), rows),
        "junk": rows._replace(steps=with_junk(rows.steps)),
    }
    for name, variant in variants.items():
        gap = largest(jax.tree.map(lambda x, y: x - y, gradient(params, variant)[0], plain))
        assert gap < 1e-5 * max(1.0, largest(plain)), name
    half = rows.steps.is_action_token & (jnp.arange(4) < 2)[:, None, None]
    _, of_half = gradient(params, rows._replace(steps=rows.steps._replace(is_action_token=half)))
    assert of_half["loss/policy"] != metrics["loss/policy"]
    assert of_half["policy/entropy"] == metrics["policy/entropy"], "of every token said, whatever is learned from"


def with_junk(steps):
    """Log-probs of padding that would overflow if anything were computed from them."""
    junk = lambda x: jnp.where(steps.is_action_token, x, -1e30)
    return steps._replace(old_log_prob=junk(steps.old_log_prob), ref_log_prob=junk(steps.ref_log_prob))


def test_signs_of_collapse_by_hand():
    """Two games of three turns; the second one's ends after its first turn, and what is no turn does not count."""
    action = jnp.array([[3, 4], [3, 4], [5, 4]])
    ids = jnp.array([[[1, 1, 2], [1, 2, 2]], [[1, 1, 1], [1, 2, 3]], [[7, 7, 7], [1, 2, 3]]])
    valid = jnp.ones_like(ids, bool).at[2, 0, 1:].set(False)
    turns = SimpleNamespace(answer_ids=ids, answer_valid=valid, episode=jnp.array([[0, 0], [0, 1], [0, 1]]))
    is_played = jnp.array([[True, True], [True, True], [True, False]])
    signs = collapse(SimpleNamespace(turns=turns, action=action), is_played)  # pyright: ignore[reportArgumentType]
    assert float(signs["collapse/repeated_commands"]) == 0.5, "of two turns that follow one, one says the same"
    assert float(signs["collapse/repeated_tokens"]) == 0.5, "1 + 1 + 2 + 0 of 2 + 2 + 2 + 2"


def test_truncated_episodes_bootstrap_from_their_own_last_picture():
    """The critic is asked about what the last action led to, not about the episode that starts next."""
    actor_critic, env_params, learner = started(CNNCritic())

    @jax.jit
    def run(learner):
        trajectory, session = rollout.play(
            actor_critic.policy,
            learner.policy,
            actor_critic.env,
            Levels.only(env_params),
            learner.session,
            jax.random.key(1),
            6,
        )
        return trajectory, actor_critic.judge(learner.critic, trajectory, session)

    critic = jax.tree.map(lambda x: x * 3, learner.critic)
    trajectory, (value, final_value) = run(learner._replace(critic=critic))
    truncated = np.asarray(trajectory.truncated)
    assert truncated.any()
    pictures = rollout.images(actor_critic.env.env, trajectory.final_state, lead=2)
    expected = np.asarray(actor_critic.critic.value(critic, pictures))
    np.testing.assert_allclose(np.asarray(final_value)[truncated], expected[truncated], rtol=1e-4, atol=1e-6)
    following = np.asarray(value)[1:][truncated]
    assert np.abs(following - expected[truncated]).max() > 1e-6


def test_pictures_are_drawn_whatever_a_state_begins_with():
    """The branch that keeps rendering apart is always taken: unsigned numbers, keys and NaN included."""
    for leaf in (
        jnp.uint32(0),
        jnp.uint8(255),
        jnp.int32(-(1 << 30)),
        jnp.float32(jnp.nan),
        jnp.float32(-jnp.inf),
        jnp.bool_(False),
    ):
        assert bool(rollout.always((jax.random.key(0), leaf[None])))
