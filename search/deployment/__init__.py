"""A finished model at work: prediction, export, HTTP server."""
