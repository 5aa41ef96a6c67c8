"""From the words of a command line to settings: spelling of flags, files of settings, messages."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from expunge.config import UnlearnConfig
from expunge.errors import ConfigError

ON_THE_COMMAND_LINE = {"config", "trust_remote_code"}
"""What no file may say: to read a further file, and to trust a model's code."""


def normalize(words: Sequence[str]) -> list[str]:
    """`--lora-rank` and `--lora_rank` are the same flag, and a switch needs no value."""
    switches = {"--" + field.name for field in dataclasses.fields(UnlearnConfig) if field.type is bool}
    normal = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name in switches and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            word = name + equals + value
        normal.append(word)
    return normal


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise ConfigError(_explain(error, parser)) from None
    except SystemExit as leave:  # --help
        if leave.code in (0, None):
            raise
        raise ConfigError(f"{parser.prog}: wrong options") from None


def _explain(error: ArgumentError, parser: ArgumentParser) -> str:
    """What the parser found, in terms of flags."""
    message = " ".join(str(error).split())
    key = re.match(r'Parser key "(\w+)": .*?(?:Given value|Got value): (.*)$', message)
    if not key:
        return message
    flag = "--" + key[1].replace("_", "-")
    action = next((action for action in parser._actions if action.dest == key[1]), None)
    kind = str(getattr(action, "_typehint", None) or getattr(action, "type", None) or "the value of another type")
    kind = re.sub(r"typing\.|<class '(\w+)'>", r"\1", kind).replace(" | None", "").replace("Optional", "")
    return f"{flag} {key[2]}: must be {kind}; see `{parser.prog} --help`"


def flags(arguments: list[str]) -> list[tuple[str, str]]:
    """Flags and their values, whether written `--name value` or `--name=value`."""
    pairs = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        pairs.append((name, value if equals else following))
    return pairs


def read_config(name: str) -> dict[str, Any]:
    """The settings in a YAML file; the message of a broken one shows none of its text."""
    import yaml

    try:
        text = Path(name).read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # a few can grow beyond all bounds
            raise ConfigError(f"--config {name}: holds an alias (*name), which settings have no use for")
        settings = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {name}: not YAML, byte {error.start + 1} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", see line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"--config {name}: not YAML{where}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {name}: holds no settings: write one a line, as `epochs: 3`")
    for key in sorted(ON_THE_COMMAND_LINE & settings.keys()):
        raise ConfigError(f"--config {name}: {key} is said on the command line alone: take it out of the file")
    return settings
