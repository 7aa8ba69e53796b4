"""Classes that a config of reinforcement learning may name without a path."""

from __future__ import annotations

from unimodal.training.rl.advantages.base import Advantage
from unimodal.training.rl.advantages.group_relative import GroupRelative
from unimodal.training.rl.advantages.leave_one_out import LeaveOneOut
from unimodal.training.rl.advantages.mean_removed import MeanRemoved
from unimodal.training.rl.advantages.per_reward import PerReward
from unimodal.training.rl.data import PromptDataModule
from unimodal.training.rl.losses.base import PolicyLoss
from unimodal.training.rl.losses.clipped import ClippedRatio
from unimodal.training.rl.losses.clipped_weights import ClippedWeights
from unimodal.training.rl.losses.sequence import SequenceRatio
from unimodal.training.rl.losses.soft_gate import SoftGate
from unimodal.training.rl.module import PolicyModule
from unimodal.training.rl.prompts.base import Prompts
from unimodal.training.rl.prompts.captions import Captions
from unimodal.training.rl.prompts.drawings import Drawings
from unimodal.training.rl.prompts.edits import Edits
from unimodal.training.rl.prompts.file import FilePrompts
from unimodal.training.rl.prompts.mixed_requests import MixedRequests
from unimodal.training.rl.prompts.questions import Questions
from unimodal.training.rl.rewards.caption import CaptionMatch
from unimodal.training.rl.rewards.drawn import DrawnColourShape
from unimodal.training.rl.rewards.edited import EditedPicture
from unimodal.training.rl.rewards.form import JsonForm, LengthForm, PatternForm, PictureCount
from unimodal.training.rl.rewards.right_answer import RightAnswer
from unimodal.training.rl.rewards.scorer import PictureScorer, TextScorer
from unimodal.training.rl.rewards.service import HttpScorer

RL_BASES = (Advantage, PolicyLoss, Prompts)
"""Dataclasses of which a config names a subclass."""

RL_CLASSES = (
    *(GroupRelative, LeaveOneOut, MeanRemoved, PerReward),
    *(ClippedRatio, ClippedWeights, SequenceRatio, SoftGate),
    *(Captions, Drawings, Edits, MixedRequests, FilePrompts, Questions),
    *(CaptionMatch, DrawnColourShape, EditedPicture, HttpScorer, JsonForm, LengthForm, PatternForm),
    *(PictureCount, PictureScorer, RightAnswer, TextScorer),
    *(PolicyModule, PromptDataModule),
)
