"""Train a model: composer train.py RUN.yaml [key=value ...]"""

import sys

from cram_composer.cli import train

# Composer's checkpoint uploads start processes that import this file again.
if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
