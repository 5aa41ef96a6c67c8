"""Completion of commands, flags and their values in a shell, as `shtab` writes it."""

import argparse

from expunge.cli import SWITCHES
from expunge.config import RECIPES
from expunge.errors import ConfigError


def completion(shell: str) -> str:
    """The script that a shell has to read.

    Raises:
        ConfigError: A shell that there is no script for.
    """
    import shtab

    from expunge.cli.commands import COMMANDS
    from expunge.cli.settings import settings_of
    from expunge.losses import FORGET_LOSSES

    if shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"--print-completion {shell}: must be one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    known = {"loss": tuple(FORGET_LOSSES), "recipe": tuple(RECIPES)}
    parser = argparse.ArgumentParser("expunge")
    parser.add_argument("--version", action="store_true", help="versions of expunge, torch, transformers and peft")
    parser.add_argument("--print-completion", choices=shtab.SUPPORTED_SHELLS, help="print this script")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help)
        for setting in settings_of(command.schema).values():
            text = setting.help.partition(". ")[0]
            if setting.positional:
                action = subparser.add_argument(setting.name, nargs="*", help=text)
            elif setting.kind is bool:
                subparser.add_argument(setting.flag, action="store_true", help=text)
                continue
            else:
                choices = setting.choices or known.get(setting.name)
                action = subparser.add_argument(setting.flag, choices=choices, help=text)
            if action.choices is None and setting.kind not in (int, float):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        for switch in (*SWITCHES, "--help-all"):
            subparser.add_argument(switch, action="store_true")
    return shtab.complete(parser, shell)
