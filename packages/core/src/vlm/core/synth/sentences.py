"""Everyday statements from our own small grammar: 41 words and the full stop, no digit and no number word."""

WHO = ("The dog", "The cat", "The bird", "The child", "The farmer", "The baker", "My friend", "My sister")
DOES = ("sleeps", "sings", "waits", "walks", "reads", "eats", "plays")
WHERE = (
    "in the garden",
    "near the river",
    "by the window",
    "on the hill",
    "under the tree",
    "at the market",
    "behind the house",
)
WHEN = ("today", "again", "at night")
SHORT = ("It rains.", "It snows.", "The sun shines.", "The wind blows again.")

SENTENCES = tuple(
    [f"{who} {does}." for who in WHO for does in DOES]
    + [f"{who} {does} {where}." for who in WHO for does in DOES for where in WHERE]
    + [f"{who} {does} {where} {when}." for who in WHO for does in DOES for where in WHERE for when in WHEN]
    + list(SHORT)
)
"""All of them, in a fixed order."""
