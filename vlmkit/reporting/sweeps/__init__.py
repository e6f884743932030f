"""From the runs of a sweep to an answer: read, put side by side, drawn."""
