"""What does not fail a run: rules that were not selected, comments in the source, and a baseline."""
