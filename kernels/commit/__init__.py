"""A round of LoPA behind the model: what each branch is worth, and the state of the winner."""
