"""``python -m experiments``."""

from experiments.commands import main

if __name__ == "__main__":  # memory is measured in processes that import this file
    main()
