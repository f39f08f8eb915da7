"""`labelmill demo`: what `make demo` does, wherever labelmill is installed."""

from importlib.resources import files
from pathlib import Path

from labelmill.pipeline.commands.arguments import Overrides
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import VerificationError
from labelmill.schemas.yaml_file import load_config


def demo(overrides: Overrides = None) -> None:
    """Make, verify and report 256 labeled portraits of the bundled generator in ./out/demo: two minutes on a CPU."""
    run_file = Path(str(files("labelmill"))) / "runs" / "demo.yaml"
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.dataset.verify import verify
    from labelmill.pipeline.report.report import write_report
    from labelmill.pipeline.store.store import Store
    from labelmill.workers.generate import generate
    from labelmill.workers.preview import redrawing

    print(f"{run_file}: the same as `labelmill generate`, `labelmill verify` and `labelmill report`")
    records, output = generate(config), config.output
    print(f"{output}: {sum(record.num_samples for record in records)} samples in {len(records)} shards")
    store = Store.open(str(output))
    problems = verify(store).problems
    if problems:
        raise VerificationError("\n  ".join([f"{output}: {len(problems)} problems", *problems]))
    with redrawing(store) as redraw:
        path = write_report(store, redraw)
    print(f"{output}/{path}: open it in a browser")
