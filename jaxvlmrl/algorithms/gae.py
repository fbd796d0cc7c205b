"""Step-level generalised advantage estimation, with three treatments of time limits.

    delta_t = r_t + gamma V_{t+1} m_{t+1} - V_t         m = 0 after the end of an episode
    A_t     = delta_t + gamma lambda m_{t+1} A_{t+1}

An end that was only a time limit is no outcome. `bootstrap_final_obs` puts V(true last observation) for V_{t+1} there;
`ends_are_terminal` takes it for one; `zero_at_truncation` is what VL-DAC's released code does: the advantage is 0 and the
step's reward is lost. Source: reference sheet "vl_dac", section 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

TIME_LIMITS = ("bootstrap_final_obs", "ends_are_terminal", "zero_at_truncation")


def gae(
    reward: Float[Array, " T"],
    value: Float[Array, " T+1"],
    final_value: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    truncated: Bool[Array, " T"],
    gamma: float,
    lam: float,
    time_limits: str = "bootstrap_final_obs",
) -> Float[Array, " T"]:
    """Advantages of one environment's steps; episodes follow one another. The value targets are advantage + value.

    `value[t]` is of what was seen before step t, `final_value[t]` of what was seen after it if it ended an episode (read
    only where `truncated`). `vmap` over environments.
    """
    v_t, v_tp1 = value[:-1], value[1:]
    goes_on = (~(terminated | truncated)).astype(reward.dtype)
    next_value = v_tp1 * goes_on
    if time_limits == "bootstrap_final_obs":
        next_value = jnp.where(truncated, final_value, next_value)
    delta = reward + gamma * next_value - v_t
    counts = jnp.where(truncated, 0.0, 1.0) if time_limits == "zero_at_truncation" else jnp.ones_like(reward)

    def backward(advantage: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]):
        delta_t, goes_on_t, counts_t = step
        advantage = (delta_t + gamma * lam * goes_on_t * advantage) * counts_t
        return advantage, advantage

    _, advantage = jax.lax.scan(backward, jnp.zeros((), reward.dtype), (delta, goes_on, counts), reverse=True)
    return advantage


def normalise(advantage: Float[Array, "*s"], eps: float = 1e-8) -> Float[Array, "*s"]:
    """Mean 0 and deviation 1 (ddof 1) over all entries; all 0 if they are equal."""
    centred = advantage - jnp.mean(advantage)
    deviation = jnp.sqrt(jnp.sum(jnp.square(centred)) / max(advantage.size - 1, 1))
    return jnp.where(jnp.max(advantage) == jnp.min(advantage), 0.0, centred / (deviation + eps))
