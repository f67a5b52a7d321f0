"""``python -m petm``, as ``torchrun -m petm`` needs it."""

from petm.cli import main

if __name__ == "__main__":  # a service starts a process that imports this file
    main()
