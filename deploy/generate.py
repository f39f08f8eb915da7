"""`labelmill generate` as a script, for what runs scripts: ray submit cluster.yaml deploy/generate.py run.yaml"""

import sys

from labelmill.pipeline.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "generate")
    main()
