"""Templates: text with named fields in braces, and `{{` or `}}` for a brace that is text."""

from collections.abc import Mapping, Sequence
from string import Formatter

from dalorra.text_tokens import Part


def fields_of(template: str) -> tuple[str, ...]:
    """Field names in order of first appearance.

    Raises:
        ValueError: it cannot be parsed, or has more than a name inside braces.
    """
    try:
        parts = [(text, name) for text, name, _, _ in Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"template {template!r} cannot be parsed: {error}") from error
    literal = "".join(
        text.replace("{", "{{").replace("}", "}}") + ("" if name is None else f"{{{name}}}")
        for text, name in parts
    )
    if literal != template:  # the words of `{note: urgent}` would be in no prompt
        raise ValueError(
            f"template {template!r} has more than a name inside braces: write only the name "
            "there, and {{ or }} for a brace that is text"
        )
    return tuple(dict.fromkeys(name for _, name in parts if name is not None))


def filled(template: str, values: Mapping[str, str | Sequence[Part]]) -> list[Part]:
    """The template's own text, and between it the values of its fields."""
    parts: list[Part] = []
    for text, name, _, _ in Formatter().parse(template):
        parts.append(Part(text, own=True))
        if name:
            value = values[name]
            parts += [Part(value)] if isinstance(value, str) else value
    return parts
