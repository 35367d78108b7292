"""The command line: `observatory fit | run | report | compare | replay | uncertainty | list`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from observatory.messages import PROGRAM, refuse

FITTING = ("fit", "validate", "test", "predict")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path:  # a console script does not find the classes in the folder where it is called
        sys.path.append("")
    if arguments and arguments[0] in FITTING:
        from observatory.fitting import fit

        return fit(arguments)
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (FileNotFoundError, ImportError, RuntimeError, ValueError) as error:
        refuse(str(error))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; see `{PROGRAM} --help`")


def _parser() -> argparse.ArgumentParser:
    from observatory import __version__

    parser = _Parser(prog=PROGRAM, description="Watch a neural network learn as a physical system.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    commands.add_parser(
        "fit", help="train and observe: fit --config experiments/NAME.yaml [--key value]; see fit --help"
    )
    run = commands.add_parser("run", help="execute an experiment or a study: run digits, run my/study.yaml")
    run.add_argument("experiment", help="a YAML file, or the name of a shipped experiment (see list)")
    run.add_argument("--quick", action="store_true", help="its smoke setting, less than a minute")
    run.add_argument("--dry-run", action="store_true", help="resolve everything, print the plan, run nothing")
    run.add_argument("--output", type=Path, default=Path("runs"), help="folder of studies; default runs")
    run.add_argument(
        "--submit", choices=("local", "slurm"), help="execute a study's runs as jobs of submitit"
    )
    run.set_defaults(command=_run)
    report = commands.add_parser("report", help="write the page of a run")
    report.add_argument("run", type=Path, help="folder of a run, such as runs/digits/version_0")
    report.add_argument("--output", type=Path, help="where to write; .html or .md decides the format")
    report.set_defaults(command=_report)
    compare = commands.add_parser("compare", help="several runs on one page")
    compare.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    compare.add_argument(
        "--output", type=Path, default=Path("comparison.html"), help="where to write; .html or .md"
    )
    compare.set_defaults(command=_compare)
    again = commands.add_parser("replay", help="look at saved checkpoints: replay --config CFG CKPT...")
    again.add_argument("--config", type=Path, required=True, help="as for fit: its model, data and observe:")
    again.add_argument("checkpoints", type=Path, nargs="+", help="files of Lightning or of a state_dict")
    again.add_argument("--out", type=Path, default=Path("runs/replay"), help="folder of the run")
    again.set_defaults(command=_replay)
    bars = commands.add_parser(
        "uncertainty", help="equip a checkpoint with error bars: uncertainty --config CFG CKPT"
    )
    bars.add_argument("--config", type=Path, required=True, help="as for fit: its model and its data")
    bars.add_argument("checkpoint", type=Path, help="file of Lightning or of a state_dict")
    bars.add_argument("--out", type=Path, default=Path("runs/uncertainty"), help="folder to write to")
    bars.add_argument("--reg", default="auto", help="ς², or auto, profile, evidence")
    bars.add_argument("--noise", choices=("none", "additive", "constant"), default="none")
    bars.add_argument("--last-layer", help="its name; default the Linear that is executed last")
    bars.set_defaults(command=_uncertainty)
    listing = commands.add_parser(
        "list", help="what can be named in a configuration, and the shipped experiments"
    )
    listing.set_defaults(command=_list)
    return parser


def _run(options: argparse.Namespace) -> int:
    from observatory.running import run_experiment

    return run_experiment(
        options.experiment,
        quick=options.quick,
        dry_run=options.dry_run,
        output=options.output,
        submit=options.submit,
    )


def _compare(options: argparse.Namespace) -> int:
    from observatory.running import write_comparison

    print(write_comparison(options.runs, options.output))
    return 0


def _report(options: argparse.Namespace) -> int:
    from observatory.report import write_report

    print(write_report(options.run, output=options.output))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from observatory.replaying import replay_checkpoints

    print(f"report: {replay_checkpoints(options.config, options.checkpoints, options.out)}")
    return 0


def _uncertainty(options: argparse.Namespace) -> int:
    from observatory.equipping import equip

    words = ("auto", "profile", "evidence")
    reg = options.reg if options.reg in words else float(options.reg)
    page = equip(
        options.config,
        options.checkpoint,
        options.out,
        reg=reg,
        noise=options.noise,
        last_layer=options.last_layer,
    )
    print(f"report: {page}")
    return 0


def _list(options: argparse.Namespace) -> int:
    for title, entries in _catalogue().items():
        print(title)
        width = max((len(name) for name in entries), default=0)
        for name, summary in entries.items():
            print(f"  {name:<{width}}  {summary}")
    return 0


def _catalogue() -> dict[str, dict[str, str]]:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch.nn import Module

    import observatory.callbacks as callbacks
    import observatory.data as data
    import observatory.training as training

    models = _summaries(training, LightningModule)
    experiments = {}
    for file in sorted(files("observatory.experiments").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            experiments[file.name] = _first_sentence(file.read_text(encoding="utf-8"))
    return {
        "instruments (observe:)": _summaries(callbacks, Callback),
        "models (model:)": models,
        "networks (network:)": {k: v for k, v in _summaries(training, Module).items() if k not in models},
        "data (data:)": _summaries(data, LightningDataModule),
        "experiments": experiments,
    }


def _first_sentence(text: str) -> str:
    """Of the comment that a file begins with."""
    comment = " ".join(
        line.lstrip("# ") for line in takewhile(lambda x: x.startswith("#"), text.splitlines())
    )
    return re.split(r"(?<=[.?!])\s", comment, maxsplit=1)[0]


def _summaries(module: Any, base: type) -> dict[str, str]:
    """First lines of the docstrings of a module's public subclasses of `base`."""
    public = {name: getattr(module, name) for name in module.__all__}
    return {
        name: (value.__doc__ or "").strip().split("\n")[0]
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, base)
    }


if __name__ == "__main__":
    raise SystemExit(main())
