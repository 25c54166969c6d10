"""``python -m atlas_ray``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
