"""The Python API: what `import search` offers, and how commands and notebooks run a search."""
