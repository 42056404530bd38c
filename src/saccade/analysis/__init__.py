"""What attention did: contributions, senses of a word, roles of heads, flow, and what follows from a change."""

from saccade.analysis.contributions import Contributions, contributions
from saccade.analysis.flow import Flow, alti, rollout, value_zeroing

__all__ = ["Contributions", "Flow", "alti", "contributions", "rollout", "value_zeroing"]
