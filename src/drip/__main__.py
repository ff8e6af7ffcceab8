"""The command line as a module: ``python -m drip``."""

from drip.cli import main

if __name__ == "__main__":
    main()
