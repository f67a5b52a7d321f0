"""``python -m petm``, as ``torchrun -m petm`` needs it."""

from petm.cli import main

main()
