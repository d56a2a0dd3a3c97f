"""Two finished models on the same rows: did the loss fall while the right words stayed outranked."""
