"""What to search, on which pictures: one `SPACE` a file, but for base, sources and glyphs."""
