"""What a model is trained for where its config does not say."""

from __future__ import annotations

from unimodal.training.objectives.balance import ExpertBalance
from unimodal.training.objectives.base import Objective
from unimodal.training.objectives.flow_matching import FlowMatching
from unimodal.training.objectives.multi_token import MultiToken
from unimodal.training.objectives.next_token import NextToken


def usual_objectives(*, flow: bool, multi_token: bool, experts: bool) -> list[Objective]:
    """Next-token prediction, and an objective for each part that the model has beside its token head."""
    others = {FlowMatching: flow, MultiToken: multi_token, ExpertBalance: experts}
    return [NextToken(), *(kind() for kind, there in others.items() if there)]
