"""Two attentions over disjoint tokens as one."""
