"""What attention did: contributions, senses of a word, roles of heads, flow, and what follows from a change."""

from saccade.analysis.ablation import Ablation, Heads, Logit, Loss, Tokens, WordVector, ablate
from saccade.analysis.contributions import Contributions, contributions
from saccade.analysis.flow import Flow, alti, rollout, value_zeroing
from saccade.analysis.logits import LogitAttribution, LogitLens, logit_attribution, logit_lens
from saccade.analysis.result import Result
from saccade.analysis.roles import HeadRoles, heads
from saccade.analysis.senses import Senses, senses
from saccade.analysis.senses.movers import Movers

__all__ = [
    "Ablation",
    "Contributions",
    "Flow",
    "HeadRoles",
    "Heads",
    "Logit",
    "LogitAttribution",
    "LogitLens",
    "Loss",
    "Movers",
    "Result",
    "Senses",
    "Tokens",
    "WordVector",
    "ablate",
    "alti",
    "contributions",
    "heads",
    "logit_attribution",
    "logit_lens",
    "rollout",
    "senses",
    "value_zeroing",
]
