"""What a person sees: one view model, `AttentionView`, and the doors to it, which only read it."""

from saccade.views.attention_view import AttentionView, Summary, look

__all__ = ["AttentionView", "Summary", "look"]
