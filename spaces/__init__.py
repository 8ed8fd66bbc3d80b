"""Spaces: what to search, on which pictures. One `SPACE` per file, but for base, sources, glyphs."""
