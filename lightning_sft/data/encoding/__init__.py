"""Encoding: examples become token ids and the mask of what is trained."""
