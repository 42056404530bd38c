"""What attention did: contributions, senses of a word, roles of heads, flow, and what follows from a change."""
