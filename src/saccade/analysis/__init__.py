"""What attention did: contributions, senses of a word, roles of heads, flow, and what follows from a change."""

from saccade.analysis.contributions import Contributions, contributions

__all__ = ["Contributions", "contributions"]
