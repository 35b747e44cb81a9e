"""Bounds of the fields of settings."""


def at_least(settings: object, **least: int) -> None:
    """Check that fields are not below their least sensible values.

    Args:
        settings: what has the fields.
        least: field to its least value.

    Raises:
        ValueError: a field below it; the message names field, bound and value.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")
