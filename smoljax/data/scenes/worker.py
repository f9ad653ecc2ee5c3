"""One process of a build: reads jobs, writes examples.

Run as `python -m smoljax.data.scenes.worker`; a process of its own rather than `multiprocessing`, which would
either fork under JAX's threads or import the caller's script a second time.
"""

import pickle
import sys


def main() -> None:
    """Reads pickled (split, start, stop, seed) from standard input; answers each with a pickled list."""
    from smoljax.data.scenes.scene import scene

    out = sys.stdout.buffer
    while True:
        try:
            split, start, stop, seed = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump([scene(split, index, seed).example() for index in range(start, stop)], out)
        out.flush()


if __name__ == "__main__":
    main()
