"""Figures of the report that need only a few numbers each."""
