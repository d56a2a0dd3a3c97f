"""Loading, adapting and looking into causal language models."""
