"""The playground: run, measure, show. Nothing here is needed to use the operators."""
