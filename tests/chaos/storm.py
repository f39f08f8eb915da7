"""Storms by command: python tests/chaos/storm.py --count 200 --first-seed 0, or --seed N for one of them."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from chaos.command import main

    sys.exit(main())
