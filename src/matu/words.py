"""Words of messages."""


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 task", "2 tasks"; plurals in -s only."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
