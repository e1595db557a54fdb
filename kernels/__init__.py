"""How each operator is computed: one folder per operator, one file per backend."""
