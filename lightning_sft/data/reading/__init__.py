"""Reading: files, hub names and tasks become examples."""
