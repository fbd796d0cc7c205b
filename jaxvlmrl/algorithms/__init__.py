"""Algorithms as pure functions of arrays: log-probs, values, rewards and masks in, advantages and losses out."""
