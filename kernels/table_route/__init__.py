"""Routing by table or hash: the token id decides, not the logits."""
