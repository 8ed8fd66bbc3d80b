"""Spaces: each module defines one `SPACE`, except those that `spaces.base.NOT_SPACES` names."""
