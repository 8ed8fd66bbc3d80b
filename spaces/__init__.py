"""What to search, on which images: one `SPACE` a file, but for base, sources and glyphs."""
