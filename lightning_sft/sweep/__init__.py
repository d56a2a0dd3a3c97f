"""Learning-rate sweeps: trials from one snapshot of a run, searches over them, and no trace afterwards."""
