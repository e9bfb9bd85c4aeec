"""The two ways in which somebody's input or one trial can be at fault."""


class InputError(Exception):
    """The input is wrong: its text is one message for the user, and the exit code is 2."""


class TrialError(Exception):
    """One trial can't be built or trained: its text is the reason that is recorded."""
