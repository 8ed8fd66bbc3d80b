"""Finding, decoding, auditing and splitting images."""
