"""Words of messages."""

from __future__ import annotations

__all__ = ["with_article"]


def with_article(noun: str) -> str:
    """``an int``, ``a list``: for messages that name the type of what was found."""
    article = "an" if noun.lower().startswith(("a", "e", "i", "o")) else "a"
    return f"{article} {noun}"
