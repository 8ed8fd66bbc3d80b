"""The common base of all errors that a user can correct."""


class SearchError(ValueError):
    """Something that the user asked for is impossible; the message says why, and the way out."""


class SourceError(SearchError):
    """A set of images is unavailable; the message says what was tried and what to do."""
