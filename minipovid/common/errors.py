"""The one error class of the house: what the user can mend, said in one sentence."""


class MinipovidError(Exception):
    """The input was wrong; the message names the thing, the value and the remedy. Printed bare, exit code 2."""
