"""The common base of all errors that a user can correct."""


class SearchError(ValueError):
    """Something that the user asked for is impossible; the message says why, and the way out."""
