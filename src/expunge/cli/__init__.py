"""The command line."""

SWITCHES = ("--debug", "--quiet", "--json")
"""What every command takes."""
