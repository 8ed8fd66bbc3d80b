"""The server: a page for people and an HTTP interface for programs."""
