"""Models that others wrote: how their attention comes through Saccade and is observed there."""
