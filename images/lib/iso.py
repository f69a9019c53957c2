"""iso: placeholder"""


class XorrisoError(Exception):
    """xorriso complained; the text is its own."""


def tree(image, view):
    raise XorrisoError('not yet')
