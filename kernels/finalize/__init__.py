"""What experts say about a token, weighed and added up."""
