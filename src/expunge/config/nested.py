"""Settings as a YAML file holds them: nested by group or not."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from expunge.config.unlearn import GROUPS
from expunge.errors import ConfigError


def by_group(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by group, as a YAML file holds them."""
    found = {
        name: {field.name: settings[field.name] for field in fields(group) if field.name in settings}
        for name, group in GROUPS.items()
    }
    return {name: values for name, values in found.items() if values}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a YAML file, nested by group or not, under their own names.

    Raises:
        ConfigError: A setting stands twice.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        items = value.items() if name in GROUPS and isinstance(value, Mapping) else [(name, value)]
        for key, inner in items:
            if key in found:
                raise ConfigError(f"the setting {key} stands twice, in a group and outside of one")
            found[key] = inner
    return found
