"""What attention did: contributions, senses of a word, roles of heads, flow, and what follows from a change."""

from saccade.analysis.contributions import Contributions, contributions
from saccade.analysis.flow import Flow, alti, rollout, value_zeroing
from saccade.analysis.logits import LogitAttribution, LogitLens, logit_attribution, logit_lens

__all__ = [
    "Contributions",
    "Flow",
    "LogitAttribution",
    "LogitLens",
    "alti",
    "contributions",
    "logit_attribution",
    "logit_lens",
    "rollout",
    "value_zeroing",
]
