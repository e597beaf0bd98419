"""A function in several processes that talk over gloo, begun from one that has imported everything."""

import io
import multiprocessing
import os
import time
import traceback
from queue import Empty

from makers.ports import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["makers.ranks", "makers.system", "makers.fitting", "open_kandinsky.train"])


def ranks(count, function, *arguments, seconds=240):
    """What `function(*arguments)` returns in each of `count` processes, which Lightning takes for its own."""
    answers = SERVER.Queue()
    port = free_port()
    started = [SERVER.Process(target=child, args=(rank, port, answers, function, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    try:
        found = dict(answer(answers, started, seconds) for _ in started)
    finally:
        for process in started:
            process.join(5)
            process.kill()
    return [found[rank] for rank in range(count)]


def answer(answers, started, seconds):
    until = time.monotonic() + seconds
    while True:
        try:
            rank, value, failure = answers.get(timeout=1)
            break
        except Empty:
            assert time.monotonic() < until, f"no process answered in {seconds} seconds"
            assert any(process.is_alive() for process in started), "a process ended without a word"
    assert failure is None, f"process {rank}:\n{failure}"
    import torch

    return rank, torch.load(io.BytesIO(value), weights_only=True)


def child(rank, port, answers, function, arguments):
    import torch

    torch.set_num_threads(1)  # as in the process that runs the tests
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        written = io.BytesIO()  # as bytes: a tensor's memory would go with its process
        torch.save(function(*arguments), written)
        answers.put((rank, written.getvalue(), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise
