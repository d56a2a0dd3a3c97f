"""Figures and texts for the loggers that can show them."""
