"""What can be at fault: somebody's input, one trial, or trial after trial."""


class InputError(Exception):
    """The input is wrong: its text is one message for the user, and the exit code is 2."""


class TrialError(Exception):
    """One trial can't be built or trained: its text is the reason that is recorded."""


class StudyStopped(Exception):
    """Trial after trial failed, so the study was stopped: its text is a diagnosis."""
