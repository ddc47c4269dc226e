"""What tests do to the workers of a cluster: kill them, make a text deadly, let one have other versions."""

import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

from distributed import WorkerPlugin


class Changed(WorkerPlugin):
    """Changes a worker when it starts; workers that come after a kill are changed too."""

    def __init__(self, name, change, *arguments):
        self.name, self.change, self.arguments = name, change, arguments

    def setup(self, worker):
        """Change it."""
        self.change(*self.arguments)


def deadly(token):
    """A text that begins with this token kills the process that measures it."""
    from interp.corpus import work

    real = work.capture

    def capture(model, content, **options):
        positions = options.get("positions")
        begins = [0] if positions is None else [at for at, position in enumerate(positions) if position == 0]
        if any(content[at] == token for at in begins):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(model, content, **options)

    work.capture = capture


def other_version(package, version):
    """The worker says that it has another version of a package."""
    from interp.corpus import work

    real = work.versions
    work.versions = lambda: real() | {package: version}


def other_weights():
    """What the worker loads when it measures has other weights than what was described."""
    from interp.corpus import work

    facts, weights = work.facts_of, work.weight_hash
    work.facts_of = lambda model, layers: replace(facts(model, layers), weights=weights(model))
    work.weight_hash = lambda model: "0" * 64


def kill_or_square(n):
    """n², except that 13 kills whoever computes it."""
    if n == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return n * n


def refuse(n):
    """An error of ours on odd numbers, and one of Python's on 4."""
    from hooks.errors import InputError

    if n % 2:
        raise InputError(f"{n} is odd")
    return n // (n - 4)


@contextmanager
def random_kills(client, kills, seed=0, pause=1.5):
    """Kill workers at random, one after another, while the block runs; gives the list of killed process ids."""
    done, killed, chance = threading.Event(), [], random.Random(seed)

    def kill():
        while len(killed) < kills and not done.wait(pause * (0.5 + chance.random())):
            try:
                pids = list(client.run(os.getpid, on_error="ignore").values())
                if pids:
                    killed.append(chance.choice(pids))
                    os.kill(killed[-1], signal.SIGKILL)
            except (OSError, RuntimeError):
                continue

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()
