"""The command ``rc2l``: train_net.py and the tools under one name, with the same options."""

import importlib.util
import sys

from rc2l.engine.entry_point import EXIT_USER_ERROR, entry_point
from rc2l.project_files import project_folder

#: Command -> (script in tools/, or the first arguments of train_net.py; what it does).
COMMANDS = {
    "new": ("new.py", "look at a folder of images and write the files that training needs"),
    "train": ([], "train a network; --run continues a run"),
    "eval": (["--eval-only"], "score a checkpoint: --run output/x, or --config-file and MODEL.WEIGHTS"),
    "predict": ("predict.py", "label images"),
    "export": ("export.py", "one file of a trained network that runs without this project"),
    "release": ("release.py", "the network of a run for others, with its settings and a card"),
    "check": ("check_dataset.py", "read every file of datasets and report what is wrong"),
    "doctor": ("doctor.py", "check that this machine can train"),
    "splits": ("make_splits.py", "write or check which images are labelled"),
    "partial-labels": ("make_partial_labels.py", "thin labels out to a share of their pixels"),
    "relations": ("class_relations.py", "how a trained network sees classes"),
    "replay": ("replay.py", "do the step again at which a run stopped"),
    "table": ("table.py", "train and print the rows of a table"),
    "report": ("report.py", "one HTML page of runs"),
    "demo": ("demo.py", "train two methods on generated images and compare them"),
    "shapes": ("make_shapes.py", "generate the images of the demo"),
    "benchmark": ("benchmark.py", "where the time of a step goes"),
}


def available() -> dict[str, str]:
    """What each command does."""
    return {name: text for name, (_, text) in COMMANDS.items()}


def usage() -> str:
    width = max(map(len, available()))
    lines = "\n".join(f"  {name:{width}}  {text}" for name, text in available().items())
    return (
        f"usage: rc2l COMMAND [OPTIONS] [KEY VALUE ...]\n\n{lines}\n\n"
        "rc2l COMMAND --help explains one. Config files of the project can be named from any folder, such as\n"
        "configs/shapes/rc2l.yaml. --run output/x stands for the config and the best checkpoint of a run. Shell\n"
        'completion: eval "$(rc2l completion bash)", or zsh.'
    )


def completion(shell: str) -> str:
    """A script that completes commands, their options, and files.

    Raises:
        ValueError: it is neither bash nor zsh.
    """
    if shell not in ("bash", "zsh"):
        raise ValueError(f"rc2l completion '{shell}': it must be bash or zsh")
    first = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    options = "--run --config-file --import --help --resume --num-gpus --checkpoint --output"
    return first + (
        "_rc2l() {\n"
        '  local word="${COMP_WORDS[COMP_CWORD]}"\n'
        f'  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{" ".join(available())}" -- "$word"))\n'
        f'  elif [ "${{word#-}}" != "$word" ]; then COMPREPLY=($(compgen -W "{options}" -- "$word"))\n'
        '  else COMPREPLY=($(compgen -f -- "$word")); fi\n'
        "}\n"
        "complete -o filenames -F _rc2l rc2l"
    )


def main(argv: list[str] | None = None) -> None:
    """Run one command; ends by SystemExit where its script does."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if argv[0] == "--version":
        from rc2l import __version__

        print(f"rc2l {__version__}")
        return
    name, rest = argv[0], argv[1:]
    if name == "completion":
        try:
            print(completion(" ".join(rest)))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)
        return
    if name not in available():
        print(f"error: there is no command '{name}'; there are {', '.join(available())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    target = COMMANDS[name][0]
    sys.argv = [f"rc2l {name}", *rest]
    if isinstance(target, list):
        from rc2l.engine.command import run

        run(COMMANDS[name][1], [*target, *rest])
        return
    script = project_folder("tools") / target
    sys.path.insert(0, str(script.parent))  # as when it is run by itself: some scripts share code
    spec = importlib.util.spec_from_file_location(f"rc2l_tool_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    entry_point(spec.loader.exec_module)(module)
    sys.exit(entry_point(module.main)())


if __name__ == "__main__":
    main()
