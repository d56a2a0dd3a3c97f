"""One page about finished or running fits, made of what they logged: no model is loaded."""
