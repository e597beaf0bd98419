"""Evaluations in processes of their own, begun from one that has imported everything and has no threads."""

import multiprocessing

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["makers.processes", "open_kandinsky.evaluate"])


def run(asked, out):
    import torch

    from open_kandinsky.config import compose
    from open_kandinsky.evaluate import evaluate

    torch.set_num_threads(1)  # as in the process that runs the tests
    evaluate(compose.compose("evaluate", [*asked, f"out='{out}'"]))


def begun(asked, out):
    process = SERVER.Process(target=run, args=(asked, out))
    process.start()
    return process
