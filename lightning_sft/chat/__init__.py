"""Talk to finished models, one beside the other."""
