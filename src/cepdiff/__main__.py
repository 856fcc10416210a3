"""`python -m cepdiff`, the form that launchers such as torchrun need."""

import sys

from cepdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
