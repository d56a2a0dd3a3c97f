"""What a run will hold in memory: a step tried without data, spread over devices, and what to change."""
