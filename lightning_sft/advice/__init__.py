"""Where a model stands on its task, and which objective to try first."""
