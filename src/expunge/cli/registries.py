"""What the registries hold, for `--help`: losses, membership attacks, metrics."""

import dataclasses


def attacks_help(*, everything: bool) -> str:
    """The membership attacks and, with `everything`, the metrics, for `expunge evaluate --help`."""
    from expunge.evaluation.metrics import ATTACKS, METRICS

    lines = [f"membership attacks (--attacks): {', '.join(ATTACKS)}"]
    for title, known in (("attacks", ATTACKS), ("metrics", METRICS)) if everything else ():
        lines += [
            "",
            f"{title}:",
            *(f"  {name:<26}{metric.definition}" for name, metric in known.items() if metric.direction),
        ]
    return "\n".join(lines)


def losses_help() -> str:
    """The forget losses, for `expunge unlearn --help-all`."""
    from expunge.losses import FORGET_LOSSES

    lines = ["forget losses (--loss NAME --loss-args name=value,...):"]
    for name, method in FORGET_LOSSES.items():
        args = ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(method))
        lines.append(f"  {name:<18}{method.formula}" + (f"\n{'':<20}{args}" if args else ""))
    return "\n".join(lines)
