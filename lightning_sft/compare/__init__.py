"""Comparisons: arms that differ in anything, over paired replicates; what to run next, and what the outcomes say."""
