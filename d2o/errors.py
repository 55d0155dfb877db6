"""The one error that a user can cause: it says what is wrong and what to type instead."""


class InputError(ValueError):
    """Bad input: `str(error)` holds the offending value, `hint` says what to type; the command exits with code 2."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class NotFinite(InputError):
    """What a model computed for row `row` of a batch is not a number, or infinite."""

    def __init__(self, row: int, what: str, hint: str) -> None:
        super().__init__(what, hint)
        self.row = row


def choice(of: str, name: str, value: object, *allowed: str) -> None:
    """Raises InputError where the knob `name` of the method `of` is not one of the `allowed` values."""
    if value not in allowed:
        hint = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
        raise InputError(f"{of} has no {name}={value!r}", f"method.{name}={hint}")
