"""The console command: `open-kandinsky VERB overrides...` is `python -m open_kandinsky.VERB overrides...`."""

import runpy
import sys
from importlib.metadata import version

from open_kandinsky.core.suggest import remedy

VERBS = {
    "train": "train one stage: clip, movq, prior or decoder",
    "generate": "pictures from a trained system: from text, from pictures, or both",
    "evaluate": "score a system by a published protocol",
    "judge": "two systems' pictures judged by people, side by side and blind",
    "selfcheck": "whether published pictures score here as published; needs a network",
    "coco": "fetch, check and unpack the images and captions that the COCO protocols score on",
    "emoji": "captioned emoji of two styles as shards: a real set, from the Python package index alone",
    "precompute": "images and captions into shards of latents and embeddings",
    "convert": "a system of one layout into another: ours, or diffusers'",
    "quickstart": "train, sample and score a toy system on this machine, in minutes",
}


def main() -> None:
    """Run the verb named on the command line; exit code 2 where there is no such verb."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print(usage())
    elif verb in ("-V", "--version"):
        print(f"open-kandinsky {version('open-kandinsky')}")
    elif verb not in VERBS:
        sys.exit(refusal(verb))
    elif {"-h", "--help"} & set(sys.argv[2:]):
        from open_kandinsky.config.help import verb_help

        print(verb_help(verb), end="")
    else:
        del sys.argv[1]
        # As __main__, by its name: Lightning starts its other processes with `python -m` and the same overrides.
        try:
            runpy.run_module(f"open_kandinsky.{verb}", run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # while modules are imported: after that a verb tells it
            print(f"open-kandinsky {verb}: interrupted", file=sys.stderr)
            sys.exit(130)


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {purpose}" for verb, purpose in VERBS.items()]
    return "\n".join(
        ["usage: open-kandinsky VERB [key=value ...]", "", *lines, "", "open-kandinsky VERB --help: its keys"]
    )


def refusal(verb: str) -> int:
    """Say on stderr that there is no such verb, with the nearest one; returns the exit code."""
    print(f"open-kandinsky: no such verb {verb!r}; {remedy(verb, VERBS, cutoff=0.5)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
