"""Figures of a rollout that people read."""

from types import SimpleNamespace

import numpy as np

from jaxvlmrl.rollout_metrics import Outcomes
from tests.small import make_actor_critic, make_config

NUM_TURNS, MAX_TURNS, BATCH, UPDATES = 4, 10, 256, 60
CHANCE = 0.05  # of winning in a turn


def segments():
    """What 256 environments that begin together go through, in updates of four turns: wins by chance, else a time limit."""
    rng = np.random.default_rng(0)
    turn = np.zeros(BATCH, np.int32)
    for _ in range(UPDATES):
        rows = []
        for _ in range(NUM_TURNS):
            won = rng.random(BATCH) < CHANCE
            lost = ~won & (turn + 1 == MAX_TURNS)
            rows.append((won, lost, turn))
            turn = np.where(won | lost, 0, turn + 1)
        won, lost, so_far = (np.stack(x) for x in zip(*rows))
        level = np.zeros_like(so_far)
        yield SimpleNamespace(terminated=won, truncated=lost, info={"success": won}, turns_so_far=so_far, level=level)


def test_the_success_rate_is_steady_though_losses_come_in_waves():
    actor_critic, _ = make_actor_critic(make_config(max_turns=MAX_TURNS, num_turns=NUM_TURNS))
    ended = Outcomes.none(actor_critic.updates_shown, 1)
    rates, of_one_update, turns = [], [], []
    for index, segment in enumerate(segments()):
        may_have_lost = (index + 1) * NUM_TURNS >= MAX_TURNS
        learner = SimpleNamespace(outcomes=ended)
        ended, recent = actor_critic.recent_outcomes(learner, segment, np.ones((NUM_TURNS, BATCH), bool), may_have_lost)  # pyright: ignore
        rates.append(float(recent.success_rate[0]))
        turns.append(float(recent.turns_per_episode[0]))
        of_one_update.append(segment.terminated.sum() / (segment.terminated | segment.truncated).sum())
    true_rate = 1 - (1 - CHANCE) ** MAX_TURNS
    true_turns = sum((1 - CHANCE) ** turn for turn in range(MAX_TURNS))
    assert np.isnan(rates[:2]).all(), "after eight turns of ten only wins can have ended"
    settled = np.asarray(rates[actor_critic.updates_shown :])
    assert np.abs(settled - true_rate).max() < 0.08
    assert np.abs(np.asarray(turns[actor_critic.updates_shown :]) - true_turns).max() < 0.8
    one_by_one = np.asarray(of_one_update[actor_critic.updates_shown :])
    assert np.abs(one_by_one - true_rate).max() > 0.15, "an update without a time limit shows mostly wins"
