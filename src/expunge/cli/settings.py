"""From a documented dataclass to flags, help and checked values: one flag for each field, one line of help from its
docs.
"""

import argparse
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from expunge.config.checks import WORDS
from expunge.config.nested import flat
from expunge.config.unlearn import GROUPS, UnlearnConfig
from expunge.errors import ConfigError
from expunge.utils.reading import UnreadableError, parse_yaml
from expunge.utils.text import did_you_mean

RENAMED = {
    "target": "--target-auc 0.5",
    "floor": "--min-retain 0.98",
    "ceiling": "--max-drift 0.05",
    "beta": "--loss npo --loss-args beta=0.5",
    "level": "--loss npo --loss-args level=sequence",
    "kl_direction": "nothing: the KL is always that of the policy from the untouched model, over the whole vocabulary",
    "select_every": "--eval-every",
    "anchor_weight": "--replay-weight",
    "anchors_per_forget": "nothing: a step has as many tokens of replay texts as of forget texts",
    "rest_weight": "--loss target_kl, which keeps the shares of all other tokens",
    "lr": "--learning-rate",
    "gamma": "--loss simnpo --loss-args gamma=0",
    "mix": "nothing: forget and retain texts always have a fixed share of a step",
    "retain_per_forget": "nothing: a step has texts to forget and to keep in the proportion of the two sets",
    "join": "--prompt-format",
}
"""Flags of the first version -> what is written now."""
ON_THE_COMMAND_LINE = {"config", "trust_remote_code"}
"""What no file may say: to read a further file, and to trust a model's code."""
Earlier = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Settings that were given -> those of the earlier run that they name; empty where they name none."""
GIVE = {
    "model": "a folder or a Hub name",
    "about": "the name that is to be forgotten",
    "output": "the file or folder to write",
    "predictions": "the folder of predictions",
    "push_to_hub": "a repository on the Hub, as owner/name",
    "run": "a run directory",
    "runs": "run directories",
    "results": "results files or run directories",
}
"""What has to be given -> what it is, for the message where it is missing."""


@dataclass(frozen=True)
class Setting:
    """One field as a flag.

    Attributes:
        name: The field's name; the flag has hyphens.
        kind: Its type without None.
        default: Its default; `MISSING` where it must be given.
        help: Its line in the docs.
        group: The group that it belongs to; empty where there is none.
        positional: Whether it stands without a flag, several times.
    """

    name: str
    kind: Any
    default: Any
    help: str
    group: str
    positional: bool

    @property
    def flag(self) -> str:
        """How it is written."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[Any, ...]:
        """What it may be, where that is a list."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def words(self) -> str:
        """Its type for people."""
        return "|".join(map(str, self.choices)) or WORDS.get(self.kind, "text")

    def read(self, value: Any) -> Any:
        """The value that a YAML file means: in it `1e-3` is text, `yes` is true and `off` is false."""
        if isinstance(value, bool):
            value = next((word for word in (("yes", "on") if value else ("no", "off")) if word in self.choices), value)
        if self.positional and isinstance(value, str):
            return [value]
        return self.convert(value) if isinstance(value, str) else value

    def convert(self, text: str) -> Any:
        """The value that a word of the command line means.

        Raises:
            ConfigError: It means none.
        """
        if self.kind is str and text.startswith("~/"):  # the shell does not see it behind `=`, or in a file
            try:
                return str(Path(text).expanduser())
            except RuntimeError:
                raise ConfigError(f"{self.flag} {text}: no home folder: write the whole path") from None
        if self.kind is bool:
            if text in ("true", "false"):
                return text == "true"
        elif self.choices:
            if text in self.choices:
                return text
            hint = did_you_mean(text, self.choices, " (did you mean {}?)")
            raise ConfigError(f"{self.flag} {text}: must be one of {', '.join(self.choices)}{hint}")
        else:
            try:
                return self.kind(text)
            except (TypeError, ValueError):
                pass
        raise ConfigError(f"{self.flag} {text}: must be {self.words}")


def settings_of(schema: type) -> dict[str, Setting]:
    """The fields of a dataclass as flags, in their order."""
    hints, helps = get_type_hints(schema), _documented(schema)
    groups = {name: {field.name for field in dataclasses.fields(group)} for name, group in GROUPS.items()}
    found = {}
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        parts = [part for part in get_args(kind) if part is not type(None)]
        plain = parts[0] if parts and get_origin(kind) not in (Literal, list) else kind
        group = next((name for name, own_fields in groups.items() if field.name in own_fields), "")
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        found[field.name] = Setting(
            name=field.name,
            kind=plain,
            default=default,
            help=helps.get(field.name, ""),
            group=group if issubclass(schema, UnlearnConfig) else "",
            positional=get_origin(plain) is list,
        )
    return found


def _documented(schema: type) -> dict[str, str]:
    """Field -> its text under `Attributes:` in the docs of the class or of one that it is made from."""
    found: dict[str, str] = {}
    for part in reversed(schema.__mro__):
        _, _, attributes = (inspect.getdoc(part) or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", "\n" + attributes):
            name, colon, text = entry.strip().partition(":")
            if colon and name.isidentifier():
                found[name] = " ".join(text.split())
    return found


def parse(schema: type, words: Sequence[str], command: str, earlier: Earlier | None = None) -> dict[str, Any]:
    """The settings that were given: a file's under those of the command line, under both those of an `earlier` run.

    Raises:
        ConfigError: An unknown flag, or a value that its flag cannot take.
    """
    known = settings_of(schema)
    parser = _Parser(prog=f"expunge {command}", add_help=False, allow_abbrev=False)
    for name, setting in known.items():
        if setting.positional:
            parser.add_argument(name, nargs="*", default=argparse.SUPPRESS)
        else:
            alias = ["--model"] if name == "run" and "model" not in known else []
            parser.add_argument(setting.flag, *alias, dest=name, default=argparse.SUPPRESS)
    parser.add_argument("--config", default=argparse.SUPPRESS)
    given, unknown = parser.parse_known_intermixed_args(_normalized(words, known))
    for word in unknown:
        raise ConfigError(_unknown(word, known, command))
    values = vars(given)
    file = values.pop("config", None)
    found = {} if file is None else read_config(file, known, command)
    for name, value in values.items():
        found[name] = value if known[name].positional else known[name].convert(value)
    if earlier:
        found = {**earlier(found), **found}
    if file and found.get("overwrite") and isinstance(found.get("output"), str):
        from expunge.runs.reads import check_apart

        check_apart(found["output"], {"config": file})
    missing = [setting for setting in known.values() if setting.default is MISSING and not found.get(setting.name)]
    if missing:
        setting = missing[0]
        what = f"{setting.name} are" if setting.positional else f"{setting.flag} is"
        raise ConfigError(f"{what} missing: give {GIVE.get(setting.name, 'it')}; see `expunge {command} --help`")
    return found


def read_config(name: str, known: Mapping[str, Setting], command: str) -> dict[str, Any]:
    """The settings in a YAML file; the message of a broken one shows none of its text.

    Raises:
        ConfigError: It cannot be read, or holds what is no setting.
    """
    try:
        settings = flat(_read_yaml(name))
    except ConfigError as error:
        raise ConfigError(f"--config {name}: {error}") from None
    found = {}
    for written, value in settings.items():
        key = str(written).replace("-", "_")
        if key in ON_THE_COMMAND_LINE:
            raise ConfigError(f"--config {name}: {written} is said on the command line alone: take it out of the file")
        if key not in known:
            raise ConfigError(f"--config {name}: {_unknown_key(str(written), known, command)}")
        if key in found:
            raise ConfigError(f"--config {name}: the setting {key} stands twice, with hyphens and without")
        found[key] = known[key].read(value)
    return found


def _read_yaml(name: str) -> dict[str, Any]:
    try:
        settings = parse_yaml(Path(name).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror}): look at the path and its permissions") from None
    except UnreadableError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError("holds no settings: write one a line, as `epochs: 3`")
    return settings


def _normalized(words: Sequence[str], known: Mapping[str, Setting]) -> list[str]:
    """`--lora_rank` is `--lora-rank`, a switch needs no value, `--run RUN` is RUN where runs stand without a flag."""
    normal = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if "runs" in known and name in ("--run", "--model"):
            normal += [value] if equals else []
            continue
        if name.startswith("--"):
            key = name[2:].replace("-", "_")
            name = "--" + key.replace("_", "-")
            if key in known and known[key].kind is bool and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            word = name + equals + value
        normal.append(word)
    return normal


def _unknown(word: str, known: Mapping[str, Setting], command: str) -> str:
    flag = word.partition("=")[0]
    key = flag.removeprefix("--").replace("-", "_")
    if key in RENAMED:
        return f"{flag} is no flag of this version: write {RENAMED[key]}"
    if not flag.startswith("--"):
        return f"{flag[:40]!r}: is no flag; see `expunge {command} --help`"
    hint = did_you_mean(flag[2:], [setting.flag[2:] for setting in known.values()], ": did you mean --{}?")
    return f"unknown flag {flag}{hint}; see `expunge {command} --help-all`"


def _unknown_key(written: str, known: Mapping[str, Setting], command: str) -> str:
    key = written.replace("-", "_")
    if key in RENAMED:
        return f"{written} is no setting of this version: write {RENAMED[key]}"
    hint = did_you_mean(key, [*known, *(GROUPS if command == "unlearn" else ())])
    return f"unknown setting {written}{hint}; see `expunge {command} --help-all`"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def describe(schema: type, shown: Sequence[str] = ()) -> str:
    """The help on flags: those that are `shown`, or all in their groups."""
    known = settings_of(schema)
    if shown:
        return "\n".join(_line(known[name]) for name in shown if name in known)
    groups: dict[str, list[str]] = {}
    for setting in known.values():
        groups.setdefault(setting.group, []).append(_line(setting))
    parts = []
    for group, lines in groups.items():
        parts += [f"{group}:"] if group else []
        parts += [*lines, ""]
    return "\n".join(parts).rstrip()


def _line(setting: Setting) -> str:
    width, indent = 98, 26
    head = f"  {setting.name.upper() + ' ...' if setting.positional else setting.flag}"
    default = setting.default
    tail = "" if default in (MISSING, None, "", False) or default == [] else f" [{default}]"
    if setting.kind is not bool and not setting.positional:
        tail = f" ({setting.words}){tail}" if setting.kind in (int, float) or setting.choices else tail
    text = textwrap.wrap(setting.help + tail, width - indent) or [""]
    if len(head) >= indent - 1:
        lines = [head, *(" " * indent + line for line in text)]
    else:
        lines = [head.ljust(indent) + text[0], *(" " * indent + line for line in text[1:])]
    return "\n".join(lines)
