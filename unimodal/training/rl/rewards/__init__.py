"""Rewards: how good an answer is, a number in [0, 1] for each. One file each."""
