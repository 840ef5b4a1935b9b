"""What a user can put right; the command line prints it as one line."""


class ReportError(ValueError):
    """Bad input: the message names the rule and the value."""
