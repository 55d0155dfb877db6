"""The one error that a user can cause: it says what is wrong and what to type instead."""


class InputError(ValueError):
    """Bad input: `str(error)` holds the offending value, `hint` says what to type; the command exits with code 2."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint
