"""The optimiser of every phase."""

from dataclasses import dataclass, field

import optax


@dataclass(unsafe_hash=True)
class Optimizer:
    """Adam with a clipped gradient norm and a schedule that counts updates, never seconds."""

    learning_rate: float = 1e-3
    final_share: float = 0.0  # of the learning rate, reached on the last update
    warmup_updates: int = 0
    decay: str = field(default="linear", metadata={"choices": ("linear", "cosine")})
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 0.5

    def make(self, num_updates: int, steps_per_update: int = 1) -> optax.GradientTransformation:
        """For a phase of `num_updates` updates of `steps_per_update` optimiser steps each."""
        warmup = self.warmup_updates * steps_per_update
        decay_steps = max(num_updates * steps_per_update - warmup, 1)
        final = self.learning_rate * self.final_share
        if self.decay == "linear":
            decay = optax.linear_schedule(self.learning_rate, final, decay_steps)
        else:
            decay = optax.cosine_decay_schedule(self.learning_rate, decay_steps, self.final_share)
        rise = optax.linear_schedule(0.0, self.learning_rate, max(warmup, 1))
        schedule = optax.join_schedules([rise, decay], [warmup]) if warmup else decay
        return optax.chain(
            optax.clip_by_global_norm(self.max_grad_norm), optax.adam(schedule, b2=self.b2, eps=self.eps)
        )
