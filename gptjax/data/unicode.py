"""Python strings as UTF-8, whatever they hold."""


def utf8(text: str) -> bytes:
    """UTF-8 of any Python string; halves of surrogate pairs, which have none, become `?`."""
    return text.encode("utf-8", "replace")
