"""A round of LoPA up to the model: the anchor, its lookaheads, and what the model reads."""
