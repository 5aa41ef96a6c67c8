"""The command line: one subcommand, one call.

Exit codes: 0 done; 1 a bug; 2 the user's input is at fault (one line, nothing overwritten); 3 done, but not what was
promised; 130 interrupted.
"""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO, cast

from expunge.cli import SWITCHES
from expunge.errors import ConfigError, UserError, outside_cause
from expunge.utils.files import finite
from expunge.utils.hardening import no_core_dumps, outline
from expunge.utils.interrupt import Interruptions
from expunge.utils.progress import Unread
from expunge.utils.ranks import is_writer
from expunge.utils.text import did_you_mean, printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    switches = {word for word in words if word in SWITCHES}
    words = [word for word in words if word not in SWITCHES]
    debug = "--debug" in switches
    os.umask(0o077)
    no_core_dumps()
    warnings.simplefilter("ignore", FutureWarning)  # deprecations inside libraries are not for users
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own, which `!expunge` inherits, may not be installed here
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without arrows loses no run
    out, err = cast("TextIO", Unread(sys.stdout)), cast("TextIO", Unread(sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        return _run(words, switches, debug=debug)


def _run(words: list[str], switches: set[str], *, debug: bool) -> int:
    """Run one command, and turn what it raises into a line and an exit code."""
    interruptions = Interruptions()
    try:
        with interruptions.heed():
            code = _dispatch(words, switches)
            sys.stdout.flush()
            return code
    except UserError as error:
        if debug:
            sys.stderr.write(outline(error))
        message = printable(" ".join(str(error).split()))
        sys.stderr.write(f"expunge: error: {message}\n")
        return 2
    except KeyboardInterrupt as error:
        if is_writer():
            sys.stderr.write(f"expunge: interrupted{f': {error}' if str(error) else ''}\n")
        return 130
    except Exception as error:
        if interruptions.seen:
            sys.stderr.write("expunge: interrupted\n")
            return 130
        if not debug and (mend := outside_cause(error)):
            sys.stderr.write(f"expunge: error: {printable(mend)}\n")
            return 2
        sys.stderr.write(outline(error))
        sys.stderr.write("expunge: this is a bug in Expunge; the traceback above says where\n")
        return 1


def _dispatch(words: list[str], switches: set[str]) -> int:
    from expunge.cli.commands import COMMANDS, recorded
    from expunge.cli.output import Output
    from expunge.cli.settings import parse
    from expunge.config.checks import check_types

    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(_versions())
        return 0
    if words[0].startswith("--print-completion"):
        from expunge.cli.completion import completion

        print(completion(words[0].partition("=")[2] or " ".join(words[1:])))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name}{did_you_mean(name, COMMANDS)}; known are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    for word in ("-h", "--help", "--help-all"):
        if word in rest:
            print(_help(name, everything=word == "--help-all"))
            return 0
    settings = command.schema(**parse(command.schema, rest, name, recorded if name == "unlearn" else None))
    check_types(settings)
    out = Output(json="--json" in switches, quiet="--quiet" in switches)
    code = command.run(settings, out)
    if out.json and is_writer():
        print(json.dumps(finite(out.results), default=str, allow_nan=False))
    return code


def _usage() -> str:
    from expunge.cli.commands import COMMANDS

    lines = [f"  expunge {name:<10}{command.help}" for name, command in COMMANDS.items()]
    first = "\n".join(f"  {COMMANDS[name].example}" for name in ("demo", "unlearn", "evaluate", "merge"))
    tail = (
        "`expunge COMMAND --help` shows the flags of one. With any command: --json prints the results as JSON,\n"
        "--quiet leaves the progress out, --debug shows the traceback of an error. Alone: --version, and\n"
        "--print-completion bash|zsh|tcsh|fish for your shell."
    )
    return "\n".join(["usage: expunge COMMAND [options]", "", *lines, "", "examples:", first, "", tail])


def _help(name: str, *, everything: bool) -> str:
    from expunge.cli.commands import COMMANDS
    from expunge.cli.registries import attacks_help, losses_help
    from expunge.cli.settings import describe

    command = COMMANDS[name]
    shown = () if everything else command.shown
    parts = [f"expunge {name}: {command.help}", f"example:\n  {command.example}", describe(command.schema, shown)]
    if everything and name == "unlearn":
        parts.append(losses_help())
    if name == "evaluate":
        parts.append(attacks_help(everything=everything))
    if shown:
        parts.append(f"All flags: `expunge {name} --help-all`; from a YAML file: --config FILE.")
    return "\n\n".join(parts)


def _versions() -> str:
    from expunge.utils.versions import versions_of

    return "\n".join(map(" ".join, versions_of("torch", "transformers", "peft").items()))
