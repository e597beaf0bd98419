"""Processes of one group, over gloo, begun from one that has imported everything."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice

from makers.ports import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["open_kandinsky.data.shard_data"])  # makers are not on its path
TIMEOUT = 120  # seconds


def one(rank, task, processes, port):
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for its workers: another server would import it all again
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    try:
        return task(rank)
    finally:
        torch.distributed.destroy_process_group()


def together(task, processes):
    """What `task(rank)` gives in each of them."""
    with ProcessPoolExecutor(processes, mp_context=SERVER) as pool:
        return list(
            pool.map(partial(one, task=task, processes=processes, port=free_port()), range(processes), timeout=TIMEOUT)
        )


def drawn(rank, folder, workers, steps, saved=None):
    """Keys of some batches, and what this process would save after them."""
    from makers.shards import data

    module = data(folder, workers=workers, batch_size=2, shuffle_buffer=5, max_bad_share=0.5)
    if saved is not None:
        module.load_state_dict(saved)
    loader = module.train_dataloader()
    passes = chain.from_iterable(iter(lambda: iter(loader), None))
    keys = [batch["key"] for batch in islice(passes, steps)]
    return keys, module.state_dict(), len(loader)
