"""The controller: from a request to a report."""
