"""Spaces: each module defines one `SPACE`, except base, rules, sources, downloads and glyphs."""
