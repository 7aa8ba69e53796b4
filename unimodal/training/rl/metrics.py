"""What is logged of a rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenizers_vq.token_space import TokenSpace
from unimodal.training.rl.advantages.base import is_equal
from unimodal.training.rl.rollouts import Rollout
from unimodal.training.rl.statistics import Sums


def log_rewards(rollout: Rollout, names: Sequence[str], kinds: Sequence[str], sums: Sums) -> None:
    """Rewards, each apart and by kind of prompt; `kinds` are the names of all kinds, `names` those of all rewards."""
    valid, totals = rollout.valid, rollout.totals
    sums.add("reward", totals, valid)
    sums.put("rewards_lost", float((~valid).sum()), valid.numel())
    sums.add("zero_std_groups", is_equal(totals, valid).float())
    for column, name in enumerate(names):
        values = rollout.rewards[rollout.weights[:, column] != 0][..., column]
        sums.add(f"reward_{name}", values, ~values.isnan())
    of_prompts = [kinds[kind] for kind in rollout.kinds]
    for kind in dict.fromkeys(kinds):
        chosen = torch.tensor([each == kind for each in of_prompts])[:, None] & valid
        sums.add(f"reward_of_{kind}", totals, chosen)


def log_lengths(rollout: Rollout, space: TokenSpace, sums: Sums) -> None:
    """Tokens of answers by modality, and how many were cut off by their token budget; a picture that ends where its
    layout says is whole."""
    lengths = torch.tensor([len(each) for each in rollout.trajectories])
    codes = torch.tensor([sum(token >= space.text_size for token in each.ids) for each in rollout.trajectories])
    sums.add("length_text", lengths - codes)
    sums.add("length_image", codes)
    cut = torch.tensor([each.finish == "length" for each in rollout.trajectories])
    drawn = torch.tensor([each.request.config.mode == "image" for each in rollout.trajectories])
    sums.add("cut_off", (cut & ~drawn).float())
    sums.add("pictures_cut_off", (cut & drawn).float())
