"""The stages of a run, from a checked request to a report."""
