"""Several processes share one run: each computes its part of the independent stages, and finds the others' in the cache.

The products of a tiny model are too small to be split between threads: two processes of one thread do far more work than
one process of two. Nothing but files goes between them, so on a CPU the results are those of one process, byte for byte.
"""
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
import multiprocessing
import os
import signal
import sys
from threading import BrokenBarrierError, Thread

import torch
import torch.distributed as dist
from tqdm import tqdm


@dataclass(frozen=True)
class Team:
    """One process's place among those that share a run."""
    rank: int = 0                              # 0 is the first: it alone reports, and writes the results
    size: int = 1
    wait: Callable = lambda: None              # until all have come here


def together(count, report, work, *args):
    """Run work(team, *args) in `count` processes of one thread -> what the first one's returns. If torchrun has started this one, in
    those that it has, on several machines too: they must see the same files. report(function) -> exit status is how a further process ends."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return launched(count, report, work, *args)
    finally:
        torch.set_num_threads(threads)


def launched(count, report, work, *args):
    """`together`, but for the threads."""
    if dist.is_available() and dist.is_torchelastic_launched():
        dist.init_process_group("gloo", timeout=timedelta(days=1))      # on a GPU as well: all that it does is wait
        try:
            if dist.get_rank():
                quiet()
            return work(Team(dist.get_rank(), dist.get_world_size(), dist.barrier), *args)
        finally:
            dist.destroy_process_group()
    if count == 1:
        return work(Team(), *args)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    others = [context.Process(target=follow, args=(rank, count, barrier, report, work, args), daemon=True) for rank in range(1, count)]
    hears = signal.signal(signal.SIGINT, signal.SIG_IGN)         # so do the others, from their first moment: Ctrl-C is for this one
    try:
        for process in others:
            process.start()
            Thread(target=watch, args=(process, barrier), daemon=True).start()
        signal.signal(signal.SIGINT, hears)
        return work(Team(0, count, barrier.wait), *args)
    except BrokenBarrierError:
        raise ValueError("another process of this run has stopped: its message stands above, if it could leave one") from None
    finally:
        signal.signal(signal.SIGINT, hears)
        for process in others:
            if process.pid:
                process.terminate()


def watch(process, barrier):
    """Nobody shall wait for a process that has failed, or was killed."""
    process.join()
    if process.exitcode:
        barrier.abort()


def follow(rank, size, barrier, report, work, args):
    """What a further process does. It ends when the first one does, however that ends: done, Ctrl-C, an error, or killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                 # where it is not inherited
    first = multiprocessing.parent_process()
    Thread(target=lambda: (first.join(), os._exit(1)), daemon=True).start()
    quiet()
    torch.set_num_threads(1)
    try:
        sys.exit(report(lambda: work(Team(rank, size, barrier.wait), *args)))
    except BrokenBarrierError:
        pass                                                     # another one has failed, and said so


def quiet():
    """The first process's lines and bars are enough."""
    sys.stdout = open(os.devnull, "w")
    loud = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **kwargs: loud(self, *args, **{**kwargs, "disable": True})
