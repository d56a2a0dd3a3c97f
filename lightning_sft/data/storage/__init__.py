"""Storage: encoded rows in flat arrays, kept on disk between runs."""
