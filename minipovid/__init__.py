"""minipovid: teach a vision-language model to stop describing what is not in the picture, on one consumer GPU."""

__version__ = "0.1.0"
