"""One update of reinforcement learning: play, judge, and learn over epochs of minibatches, as one function for `jit`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs_jax.environment import Params as EnvParams
from envs_jax.environment import State
from envs_jax.wrappers import AutoReset, Levels
from jaxvlmrl import packed, rollout, thinking
from jaxvlmrl.adapters import joined
from jaxvlmrl.algorithms.algorithm import Algorithm, Experience, Steps
from jaxvlmrl.algorithms.masking import masked_mean
from jaxvlmrl.conversation import Turns
from jaxvlmrl.corrector import Corrected, Corrector
from jaxvlmrl.curriculum import Curriculum
from jaxvlmrl.models.critics import Critic
from jaxvlmrl.models.layers import Params
from jaxvlmrl.policy import Policy
from jaxvlmrl.rollout import Session, Trajectory, batch_major
from jaxvlmrl.rollout_metrics import Metrics, Outcomes, outcomes, played, spread


class Learner(NamedTuple):
    """Everything an update changes."""

    policy: Params  # what of it is trained; the rest is given to every update as `frozen`
    critic: Params
    reference: Params  # the policy at the start of RL
    policy_optimizer: Any
    critic_optimizer: Any
    session: Session
    chances: jax.Array  # of the curriculum's levels to be begun
    outcomes: Outcomes  # [updates_shown, levels], of the last updates, the newest last
    turns: jax.Array  # int32, played so far


class When(NamedTuple):
    """Where in the phase an update stands."""

    is_warmup: jax.Array  # bool: only the critic learns
    progress: jax.Array  # float32, 0 to 1


class Rows(NamedTuple):
    """What training needs of B environments, arrays [B, ...]; the first W - 1 turns are context outside the loss."""

    states: State  # [B, W - 1 + T]
    turns: Turns  # [B, W - 1 + T, ...]
    grammar_states: jax.Array  # [B, T, G]
    sampled_log_prob: jax.Array  # [B, T, G], as the sampler had it
    steps: Steps  # fields [B, T, ...]
    corrected: Corrected | None = None  # fields [B, T, G]


class Thoughts(NamedTuple):
    """What a teacher-forced pass says of T turns of b environments."""

    log_probs: jax.Array  # [b, T, G], of the sampled tokens
    entropy: jax.Array  # [b, T, G], of the distributions they were drawn from
    prompt_hidden: jax.Array  # [b, T, D]
    answer_hidden: jax.Array  # [b, T, G, D], from which each token was drawn
    images: jax.Array  # [b, T, height, width, 3] uint8, what was seen
    image_tokens: jax.Array  # [b, T, I, D]


@dataclass(frozen=True, eq=False)
class ActorCritic:
    """Reinforcement learning of a policy with a critic of its own, in segments of T turns."""

    policy: Policy
    critic: Critic
    env: AutoReset
    algorithm: Algorithm
    policy_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation
    num_updates: int  # of the phase, for what changes along it
    num_envs: int  # B
    num_turns: int  # T
    epochs: int
    minibatches: int
    microbatches: int  # a minibatch's gradient is gathered in so many parts
    envs_at_once: int  # in a rollout; 0 for all
    old_log_prob: str  # "sampler" or "recomputed"
    curriculum: Curriculum = field(default_factory=Curriculum)
    corrector: Corrector | None = None  # where the algorithm clones thoughts
    thought_reward: float = 0.0
    thought_paid_for: str = "wins"
    stop_after_turns: int = 0  # where the phase ends if not with its updates; 0 for those alone
    updates_shown: int = 1  # in one success rate: all environments began together, so losses come in waves

    def init(self, params: Params, env_params: EnvParams, key: jax.Array) -> Learner:
        critic_key, env_key = jax.random.split(key)
        env = self.env.env
        image = jax.eval_shape(lambda: env.observe(env.init(key, env.default_params())))["image"]
        height, width, _ = image.shape
        critic = self.critic.init(critic_key, height, width, self.policy.model.text.width)
        chances = self.curriculum.start()
        session = self.fresh_session(self.curriculum.begun(chances, env_params), env_key)
        optimizers = self.policy_optimizer.init(params), self.critic_optimizer.init(critic)
        ended = Outcomes.none(self.updates_shown, self.curriculum.num_levels)
        reference = jax.tree.map(jnp.copy, params)
        return Learner(params, critic, reference, *optimizers, session, chances, ended, jnp.int32(0))

    def step(
        self, learner: Learner, frozen: Params, env_params: EnvParams, key: jax.Array, index: jax.Array
    ) -> tuple[Learner, Metrics]:
        """Update `index` of the phase: one rollout and all the learning from it."""
        play_key, shuffle_key = jax.random.split(key)
        levels = self.curriculum.begun(learner.chances, env_params)
        if self.algorithm.whole_episodes:
            learner = learner._replace(session=self.fresh_session(levels, jax.random.fold_in(key, 2)))
        trajectory, session = rollout.play_in_parts(
            self.policy, joined(learner.policy, frozen), self.env, levels, learner.session, play_key, self.num_turns,
            self.envs_at_once, read_final=self.reads_final,
        )  # fmt: skip
        trajectory = self.with_thoughts_paid(trajectory)
        is_played = self.is_played(trajectory)
        value, final_value = self.judge(learner.critic, trajectory, session)
        rows, valued = self.rows(learner, frozen, trajectory, value, final_value, is_played)
        rows = self.with_corrections(rows, trajectory, jax.random.fold_in(key, 4))
        is_warmup = index < self.algorithm.critic_warmup
        when = When(is_warmup, self.progress(index, learner.turns))
        may_have_lost = (index + 1) * self.num_turns >= env_params.max_turns
        ended, recent = self.recent_outcomes(learner, trajectory, is_played, may_have_lost)
        chances = self.curriculum.learn(learner.chances, recent)
        told = played(self.policy, trajectory, is_played, recent)
        told |= self.curriculum.metrics(chances, trajectory, is_played, recent)
        turns = learner.turns + jnp.sum(is_played)
        learner = learner._replace(session=session, chances=chances, outcomes=ended, turns=turns)
        learner, learned = self.learn(learner, frozen, rows, shuffle_key, when)
        return learner, learned | valued | told

    def recent_outcomes(
        self, learner: Learner, trajectory: Trajectory, is_played: jax.Array, may_have_lost: jax.Array
    ) -> tuple[Outcomes, Outcomes]:
        """(those of the last updates, sums by level); the sums are 0 until the first time limit: only wins end before."""
        new = outcomes(trajectory, is_played, self.curriculum.num_levels)
        ended = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), learner.outcomes, new)
        return ended, jax.tree.map(lambda x: x * may_have_lost, ended.over(axis=0))

    def with_thoughts_paid(self, trajectory: Trajectory) -> Trajectory:
        if not self.thought_reward:
            return trajectory
        turns, is_done = trajectory.turns, trajectory.terminated | trajectory.truncated
        return trajectory._replace(reward=trajectory.reward + thinking.pay(
            self.policy, self.thought_reward, self.thought_paid_for, turns.answer_ids, turns.answer_valid, is_done,
            trajectory.info["success"],
        ))  # fmt: skip

    def progress(self, index: jax.Array, turns: jax.Array) -> jax.Array:
        """0 to 1 through the phase, whichever of its ends is nearer."""
        return jnp.maximum(index / self.num_updates, turns / self.stop_after_turns if self.stop_after_turns else 0.0)

    @property
    def reads_final(self) -> bool:
        return self.algorithm.uses_critic and self.critic.reads_hidden and not self.algorithm.values_tokens

    def fresh_session(self, levels: Levels, key: jax.Array) -> Session:
        return rollout.begin(self.policy, self.env, levels, key, self.num_envs, self.algorithm.environments_alike)

    def is_played(self, trajectory: Trajectory) -> jax.Array:
        """[T, B] bool: False after an environment's first episode, where an algorithm wants one each."""
        is_done = (trajectory.terminated | trajectory.truncated).astype(jnp.int32)
        if not self.algorithm.whole_episodes:
            return jnp.ones_like(is_done, bool)
        return jnp.cumsum(is_done, axis=0) - is_done == 0

    def judge(self, critic: Params, trajectory: Trajectory, session: Session) -> tuple[jax.Array, jax.Array]:
        """(values [T + 1, B] of what was seen, values [T, B] of what episodes that were cut off ended in)."""
        if not self.algorithm.uses_critic or self.algorithm.values_tokens:
            nothing = jnp.zeros_like(trajectory.reward)
            return jnp.concatenate([nothing, nothing[:1]]), nothing
        if self.critic.reads_hidden:
            hidden = jnp.concatenate([trajectory.prompt_hidden, trajectory.next_hidden[None]])
            return self.critic.value(critic, hidden), self.critic.value(critic, trajectory.final_hidden)
        value_of = lambda state: self.critic.value(critic, rollout.images(self.env.env, state, lead=1))
        seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), trajectory.state, session.state)
        zeros = jnp.zeros(trajectory.reward.shape[1])
        if_cut = lambda xs: jax.lax.cond(jnp.any(xs[1]), value_of, lambda _: zeros, xs[0])
        return jax.lax.map(value_of, seen), jax.lax.map(if_cut, (trajectory.final_state, trajectory.truncated))

    def rows(
        self, learner: Learner, frozen: Params, trajectory: Trajectory, value: jax.Array, final_value: jax.Array,
        is_played: jax.Array,
    ) -> tuple[Rows, Metrics]:  # fmt: skip
        """What is learned from, and how well the critic foresaw it."""
        past = learner.session
        join = lambda old, new: jnp.swapaxes(jnp.concatenate([old, new]), 0, 1)
        valid, log_probs = batch_major((trajectory.turns.answer_valid, trajectory.log_probs))
        nothing = jnp.zeros_like(batch_major(is_played), jnp.float32)
        steps = Steps(valid, log_probs, log_probs, nothing, nothing, nothing, batch_major(is_played))
        if self.policy.thought_tokens:
            ids = batch_major(trajectory.turns.answer_ids)
            steps = steps._replace(is_thought=thinking.is_thought(self.policy, ids, valid))
        rows = Rows(
            jax.tree.map(join, past.past_states, trajectory.state),
            jax.tree.map(join, past.past, trajectory.turns),
            batch_major(trajectory.grammar_states),
            log_probs,
            steps,
        )
        if self.old_log_prob == "recomputed":
            steps = steps._replace(old_log_prob=self.log_probs(joined(learner.policy, frozen), rows))
        if self.algorithm.kl_coef:
            steps = steps._replace(ref_log_prob=self.log_probs(joined(learner.reference, frozen), rows))
        rows = rows._replace(steps=steps)
        token_value = None
        if self.algorithm.values_tokens:
            params = joined(learner.policy, frozen)
            token_value = self.in_parts(lambda part: self.valued(learner.critic, self.think(params, part)), rows)
        steps, valued = self.credited(steps, trajectory, value, final_value, token_value)
        return rows._replace(steps=steps), valued

    def with_corrections(self, rows: Rows, trajectory: Trajectory, key: jax.Array) -> Rows:
        if self.corrector is None:
            return rows
        states = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory.state)
        corrected = self.corrector.correct(states, key)
        return rows._replace(corrected=batch_major(
            jax.tree.map(lambda x: x.reshape(*trajectory.action.shape, -1), corrected)
        ))  # fmt: skip

    def credited(
        self, steps: Steps, trajectory: Trajectory, value: jax.Array, final_value: jax.Array,
        token_value: jax.Array | None,
    ) -> tuple[Steps, Metrics]:  # fmt: skip
        """The steps [B, T] with what they are worth; of those that teach nothing no token counts."""
        batch = trajectory.reward.shape[1]
        tokens = batch_major((steps.is_action_token, steps.old_log_prob, steps.ref_log_prob))
        group = jnp.arange(batch) // self.algorithm.environments_alike
        anchor = jnp.zeros_like(trajectory.action)
        if self.algorithm.compares_states:
            anchor = jax.vmap(jax.vmap(self.env.env.anchor))(trajectory.state)
        credit = self.algorithm.credit(Experience(
            trajectory.reward, value, final_value, trajectory.terminated, trajectory.truncated,
            batch_major(steps.is_played), group, anchor, *tokens,
            token_value=None if token_value is None else batch_major(token_value),
            won=trajectory.info["success"] & (trajectory.terminated | trajectory.truncated),
        ))  # fmt: skip
        advantage, returns, is_kept, old_value = batch_major(
            (credit.advantage, credit.returns, credit.is_kept, value[:-1])
        )
        old_value = old_value if token_value is None else token_value
        is_action_token = steps.is_action_token & is_kept[..., None]
        steps = steps._replace(
            is_action_token=is_action_token, advantage=advantage, returns=returns, old_value=old_value
        )
        metrics = {"policy/kept_share": jnp.sum(is_kept) / jnp.sum(steps.is_played)}
        if self.algorithm.uses_critic:
            counts = self.algorithm.is_valued(steps)
            of_played = lambda x: masked_mean(jnp.square(x - masked_mean(x, counts)), counts)
            unexplained = of_played(returns - old_value) / of_played(returns)
            metrics["value/explained_variance"] = jnp.where(spread(returns, counts) > 0, 1 - unexplained, jnp.nan)
        return steps, metrics

    def log_probs(self, params: Params, rows: Rows) -> jax.Array:
        """[B, T, G] of the sampled tokens."""
        return self.in_parts(lambda part: self.think(params, part).log_probs, rows)

    def valued(self, critic: Params, thoughts: Thoughts) -> jax.Array:
        """[b, T] values of what was seen, or [b, T, G] before every token; 0 without a critic."""
        if not self.algorithm.uses_critic:
            return jnp.zeros(thoughts.log_probs.shape[:2])
        if self.algorithm.values_tokens:
            return self.critic.value(critic, thoughts.answer_hidden)
        return self.critic.value(critic, thoughts.prompt_hidden if self.critic.reads_hidden else thoughts.images)

    def in_parts(self, of_part: Callable[[Rows], jax.Array], rows: Rows) -> jax.Array:
        """[B, ...] of all rows, a minibatch's part at a time."""
        parts = jax.tree.map(lambda x: x.reshape(self.minibatches * self.microbatches, -1, *x.shape[1:]), rows)
        found = jax.lax.map(of_part, parts)
        return found.reshape(-1, *found.shape[2:])

    def think(self, params: Params, rows: Rows) -> Thoughts:
        """The answers that were sampled, as the policy with these parameters sees them."""
        images = rollout.images(self.env.env, rows.states, lead=2)
        image_tokens = self.policy.model.image_tokens(params, images)
        pass_ = packed.forward(self.policy, params, rows.turns, image_tokens, self.policy.prefix(params))
        trained = lambda x: x[:, self.policy.window - 1 :]
        ids = trained(rows.turns.answer_ids)
        hidden = trained(pass_.answer_hidden)
        judged = self.policy.judge_tokens(params, hidden, ids, rows.grammar_states)
        seen = trained(images), trained(image_tokens)
        return Thoughts(judged.log_prob, judged.entropy, trained(pass_.prompt_hidden), hidden, *seen)

    def loss(self, params: tuple[Params, Params], frozen: Params, rows: Rows, when: When) -> tuple[jax.Array, Metrics]:
        policy, critic = params
        params_of_all = joined(policy, frozen)
        thoughts = self.think(params_of_all, rows)
        log_prob = thoughts.log_probs
        value = self.valued(critic, thoughts)
        loss = self.algorithm.loss(log_prob, thoughts.entropy, value, rows.steps, when.is_warmup, when.progress)
        gap_to = lambda other: jnp.max(jnp.where(rows.steps.is_action_token, jnp.abs(log_prob - other), 0.0))
        metrics = {"loss/total": loss.total, "loss/policy": loss.policy, "loss/value": loss.value}
        if self.algorithm.kl_coef:
            metrics["loss/kl"] = loss.kl
        is_token = rows.turns.answer_valid[:, self.policy.window - 1 :] & rows.steps.is_played[..., None]
        entropy = masked_mean(thoughts.entropy, is_token)  # the bonus is of what is kept, in the algorithm's own mean
        metrics |= {"policy/entropy": entropy, "policy/clip_fraction": loss.clip_fraction}
        metrics |= {
            "ratio/max_gap": gap_to(rows.sampled_log_prob),
            "ratio/max_log_ratio": gap_to(rows.steps.old_log_prob),
        }
        total = loss.total
        if self.corrector and rows.corrected:
            of_corrected = self.corrector.log_probs(params_of_all, rows.corrected, thoughts.image_tokens)
            counts = rows.corrected.is_thought & rows.steps.is_played[..., None]
            metrics["loss/cloning"] = self.algorithm.cloning_loss(of_corrected, counts)
            total += jnp.where(when.is_warmup, 0.0, self.algorithm.sft_coef * metrics["loss/cloning"])
        return total, metrics

    def learn(
        self, learner: Learner, frozen: Params, rows: Rows, key: jax.Array, when: When
    ) -> tuple[Learner, Metrics]:
        """All epochs over a rollout; minibatches are of whole environments, shuffled anew in every epoch."""
        batch = rows.grammar_states.shape[0]
        orders = jax.vmap(lambda k: jax.random.permutation(k, batch))(jax.random.split(key, self.epochs))
        shape = (self.epochs * self.minibatches, self.microbatches, -1)

        def minibatch(learner: Learner, order: jax.Array) -> tuple[Learner, Metrics]:
            params = (learner.policy, learner.critic)

            def part(total: tuple[Params, Params], some: jax.Array) -> tuple[tuple[Params, Params], Metrics]:
                of_part = jax.tree.map(lambda x: x[some], rows)
                grads, metrics = jax.grad(self.loss, has_aux=True)(params, frozen, of_part, when)
                return jax.tree.map(jnp.add, total, grads), metrics

            total, metrics = jax.lax.scan(part, jax.tree.map(jnp.zeros_like, params), order)
            grads = jax.tree.map(lambda x: x / self.microbatches, total)
            teaches = jnp.any(rows.steps.is_step[order.reshape(-1)]) | (self.corrector is not None)
            stays = when.is_warmup | ~teaches
            return self._apply(learner, grads, stays), metrics | {"policy/grad_norm": optax.global_norm(grads[0])}

        learner, metrics = jax.lax.scan(minibatch, learner, orders.reshape(shape))
        gaps = {name: metrics.pop(name) for name in ("ratio/max_gap", "ratio/max_log_ratio")}  # of sampler and of ratio
        before_first_step = {name: jnp.max(values[0]) for name, values in gaps.items()}
        return learner, {name: jnp.mean(values) for name, values in metrics.items()} | before_first_step

    def _apply(self, learner: Learner, grads: tuple[Params, Params], stays: jax.Array) -> Learner:
        """One optimiser step. Where the policy stays, in warm-up or without a step to learn from, so does its optimiser."""
        updates, optimizer = self.policy_optimizer.update(grads[0], learner.policy_optimizer, learner.policy)
        moved = (optax.apply_updates(learner.policy, updates), optimizer)
        kept = (learner.policy, learner.policy_optimizer)
        policy, policy_optimizer = jax.tree.map(lambda new, old: jnp.where(stays, old, new), moved, kept)
        updates, critic_optimizer = self.critic_optimizer.update(grads[1], learner.critic_optimizer, learner.critic)
        critic = optax.apply_updates(learner.critic, updates)
        return learner._replace(
            policy=policy, critic=critic, policy_optimizer=policy_optimizer, critic_optimizer=critic_optimizer
        )
