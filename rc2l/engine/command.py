"""What train_net.py, ``rc2l train`` and ``rc2l eval`` do."""

import argparse

from rc2l.engine.arguments import read_arguments
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser, evaluate_only, setup, train


def main(args: argparse.Namespace) -> dict[str, float]:
    """What every process does; returns the scores."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate_only(cfg, args.resume)
    return train(cfg, args.resume, replace=args.fast_dev_run)


@entry_point
def run(description: str, argv: list[str] | None = None) -> None:
    """Read the arguments and start the processes."""
    args = read_arguments(argument_parser(description), argv)
    if args.run:  # what the user gives comes later, and wins; the folder may have been moved since it was written
        weights = ["MODEL.WEIGHTS", args.checkpoint] if args.eval_only and not args.resume else []
        args.opts = ["OUTPUT_DIR", args.run, *weights, *args.opts]
        args.resume = args.resume or not args.eval_only
    launch(main, args)
