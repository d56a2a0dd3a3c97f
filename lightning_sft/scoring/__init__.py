"""Scores of single rows: a line a row in a Parquet file, and the change between two such files."""
