"""Says in words when a run is not well. Looks only at metrics; changes nothing."""

import math
from collections.abc import Mapping
from typing import Any

MARGIN = 0.05  # more right answers than by always giving the commonest one, for who looks
SAME = 0.9  # of a policy's commands are those of the turn before, when it is stuck
STUTTER = 0.5  # of its tokens are the token before, when it babbles
FALLEN = 0.5  # of the best share of wins so far
COMMON = 0.04  # a command of a larger share is missed when it is gone
UNKNOWN = (
    "rollout/success_rate",
    "rollout/turns_per_episode",
    "value/explained_variance",
    "level/",
    "thought/",
)  # what an update may not have shown
ROUNDING = 0.5  # of log-probs between sampler and trainer, in bfloat16
MAX_GAP = 1e-4  # of log-probs before the first step, between what ratios are taken to and the trainer


class Watchdog:
    """Each complaint is made once, when it begins, and again if it went away and came back."""

    def __init__(self) -> None:
        self._standing: set[str] = set()
        self._used: set[str] = set()
        self._most_wins = 0.0
        self._unseen: dict[str, tuple[float, float]] = {}  # by question: right answers, and those of the commonest one

    def look(self, metrics: Mapping[str, Any]) -> list[str]:
        """The sentences that are new with this row of an update, as it is made or as it was written down."""
        metrics = {name: math.nan if value is None else value for name, value in metrics.items()}
        found = {sentence.split(":")[0]: sentence for sentence in self._complaints(metrics)}
        new = [sentence for topic, sentence in found.items() if topic not in self._standing]
        self._standing = set(found)
        return new

    def _complaints(self, metrics: Mapping[str, float]) -> list[str]:
        found = []
        bad = [name for name, value in metrics.items() if value != value and not name.startswith(UNKNOWN)]
        if bad:
            found.append(f"not a number: {', '.join(bad)}")
        if metrics.get("rollout/reward_spread", 1.0) == 0.0:
            found.append("rewards: all are equal, so there is nothing to learn from")
        unparsable = metrics.get("rollout/unparsable_share", 0.0)
        if unparsable > 0.1:
            found.append(f"answers: {unparsable:.0%} cannot be read")
        gap, noise = metrics.get("ratio/max_log_ratio", 0.0), metrics.get("ratio/max_gap", 0.0)
        if gap > MAX_GAP:
            found.append(f"ratio: before the first step its logarithm is {gap:.1e}, where the policy has not moved yet")
        elif noise > ROUNDING:
            found.append(f"ratio: sampler and trainer differ by {noise:.1e} in log-probability, more than by rounding")
        if metrics.get("policy/entropy", 1.0) < 1e-3:
            found.append("entropy: it is gone, the policy no longer tries anything else")
        if metrics.get("collapse/repeated_commands", 0.0) > SAME:
            found.append(
                f"commands: {metrics['collapse/repeated_commands']:.0%} are those of the turn before, it is stuck"
            )
        if metrics.get("collapse/repeated_tokens", 0.0) > STUTTER:
            found.append(f"tokens: {metrics['collapse/repeated_tokens']:.0%} repeat the one before, it babbles")
        return found + self._form_without_success(metrics) + self._unseen_things(metrics) + self._died_out(metrics)

    def _form_without_success(self, metrics: Mapping[str, float]) -> list[str]:
        """Answers that can be read are cheap: a policy may get better at them and worse at the game."""
        wins = metrics.get("rollout/success_rate", math.nan)
        if math.isnan(wins):
            return []
        chance = 1 / math.sqrt(max(metrics.get("rollout/episodes", math.inf), 1.0))  # two deviations of a half
        self._most_wins = max(self._most_wins, wins - chance)
        if wins + chance >= FALLEN * self._most_wins or metrics.get("rollout/unparsable_share", 1.0) > MARGIN:
            return []
        return [f"wins: they fell from {self._most_wins:.0%} or more to {wins:.0%}, though its answers can be read"]

    def _unseen_things(self, metrics: Mapping[str, float]) -> list[str]:
        """Of the last probe of perception; said once reinforcement learning has begun."""
        for name, right in metrics.items():
            if name.startswith("validation/perception/"):
                commonest = metrics[name.replace("/perception/", "/commonest_answer/")]
                self._unseen.pop(name, None)
                if right < min(commonest + MARGIN, 1.0):
                    self._unseen[name] = right, commonest
        if "rollout/success_rate" not in metrics:
            return []
        return [
            f"perception of {name.rpartition('/')[2]}: {right:.0%} of the answers are right, always giving the commonest "
            f"one is right in {commonest:.0%}; what cannot be seen cannot be acted on: teach it longer, or look closer"
            for name, (right, commonest) in sorted(self._unseen.items())
        ]

    def _died_out(self, metrics: Mapping[str, float]) -> list[str]:
        shares = {name: share for name, share in metrics.items() if name.startswith("command/")}
        self._used |= {name for name, share in shares.items() if share > COMMON}
        gone = [name for name in sorted(self._used) if shares.get(name, 1.0) < 1e-3]
        self._used -= set(gone)
        names = [name.removeprefix("command/").replace("_", " ") for name in gone]
        return [f"command {name}: it died out, it used to be more than {COMMON:.0%} of all" for name in names]
