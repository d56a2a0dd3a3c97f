"""At which step of a run probes flip, forecast from a short stretch of it."""
