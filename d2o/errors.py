"""The one error that a user can cause: it says what is wrong and what to type instead."""


class InputError(ValueError):
    """Bad input: `str(error)` holds the offending value, `hint` says what to type. Printed as two lines, exit code 2."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint
