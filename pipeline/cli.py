"""The `labelmill` command: one function per subcommand.

The functions import what they need, so that `--help` does not wait for torch.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from labelmill.pipeline.commands.annotate import annotate
from labelmill.pipeline.commands.arguments import HELP_OPTIONS, Output, Overrides, Root, RunFile
from labelmill.pipeline.commands.benchmark import benchmark
from labelmill.pipeline.commands.demo import demo
from labelmill.pipeline.commands.evaluate import evaluate
from labelmill.pipeline.commands.export import export
from labelmill.pipeline.commands.init import init
from labelmill.pipeline.commands.nightly import nightly
from labelmill.pipeline.commands.photos import invert, segment
from labelmill.pipeline.commands.reproduce import reproduce
from labelmill.pipeline.commands.stats import stats
from labelmill.pipeline.process.interruption import (
    Interrupted,
    end_soon_after_signals,
    interrupted_words,
    interruptible,
    keep_exit_status,
)
from labelmill.pipeline.process.log import check_log_variable, log
from labelmill.pipeline.process.settings import restart_with_process_settings
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import EXIT_RESUMABLE, LabelmillError, OutputError
from labelmill.schemas.yaml_file import load_config

HELP = """Labeled segmentation datasets from a StyleGAN2 generator.

Exit status: 0 done; 2 unusable run file, checkpoint or output; 3 shards or photos failed; 4 verification failed, or a
sample came out otherwise; 5 a nightly gate failed; 6 locked by another nightly run; 75 interrupted, or no worker
available; rerun the same command to resume.
"""
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=HELP,
    context_settings={"help_option_names": list(HELP_OPTIONS)},
)
app.add_typer(annotate, name="annotate", help="Label a handful of generated images by hand.")
app.command()(evaluate)
app.command()(export)
app.command()(benchmark)
app.command()(demo)
app.add_typer(
    nightly,
    name="nightly",
    help="Make a dataset every night and publish it only if it passes its gates: `labelmill nightly NIGHTLY.YAML`.",
)

app.command()(init)
app.command()(invert)
app.command()(segment)
app.command()(reproduce)
app.command()(stats)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"labelmill {version('labelmill')}")
        raise typer.Exit


@app.callback()
def _all_commands(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def validate(
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.YAML")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of run files instead.")] = False,
) -> None:
    """Check a run file, its checkpoint and the content of its output. Writes nothing."""
    if schema:
        print(json.dumps(RunConfig.model_json_schema(), indent=2))
        return
    if run_file is None:
        raise typer.BadParameter("give a run file or --schema")
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.check_run import check_run

    checked = check_run(config)
    spec, sha256 = checked.sampler.generator.spec, checked.checkpoint.sha256
    print(f"{run_file}: fine. {spec.size_in_words}, {spec.num_ws} rows of w, checkpoint sha256 {sha256}")


@app.command()
def plan(run_file: RunFile, overrides: Overrides = None) -> None:
    """Show what `generate` would make, with a measured estimate of time and bytes."""
    from labelmill.workers.estimate import estimate

    for line in estimate(load_config(run_file, RunConfig, overrides or ())):
        print(line)


@app.command()
def preview(
    run_file: RunFile,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, max=1024, help="Number of samples to draw (default 64).")] = 64,
    out: Annotated[Path | None, typer.Option(help="File for the PNG (default NAME-preview.png).")] = None,
) -> None:
    """Label the run's first seeds and draw them on one sheet, dropped samples included."""
    from labelmill.workers.preview import preview_sheet

    config = load_config(run_file, RunConfig, overrides or ())
    path = out or Path(f"{config.name}-preview.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(preview_sheet(config, samples))
    except OSError as error:
        raise OutputError(f"--out {path}: cannot be written: {error.strerror or error}") from error
    print(path)


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint: path, URL or bundled:NAME.", metavar="CKPT")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheets: Annotated[
        Path | None, typer.Option(help="Folder for a sheet of samples and a style-mixing sheet (PNG).")
    ] = None,
    truncation_psi: Annotated[float, typer.Option(min=0, max=2, help="Truncation psi of the sheets.")] = 0.7,
    convert: Annotated[Path | None, typer.Option(help="File to write the generator to (.safetensors).")] = None,
) -> None:
    """Describe a checkpoint; nothing in it is executed."""
    from labelmill.pipeline.generator import inspect as inspection
    from labelmill.pipeline.generator.checkpoints import open_checkpoint

    loaded = open_checkpoint(checkpoint)
    description = inspection.describe_checkpoint(loaded)
    print(json.dumps(description.as_json(), indent=2) if as_json else "\n".join(description.lines()))
    if sheets is not None:
        inspection.write_sample_sheet(sheets / "samples.png", loaded.generator, psi=truncation_psi)
        inspection.write_style_mixing_sheet(sheets / "style-mixing.png", loaded.generator, psi=truncation_psi)
    if convert is not None:
        inspection.convert(loaded, convert)


@app.command()
def fit(run_file: RunFile, overrides: Overrides = None) -> None:
    """Fit the labeler and publish it in the output, where `generate` finds it."""
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.labelers.methods import method_of
    from labelmill.workers.generate import fit as run_fit

    run = run_fit(config)
    print(f"labeler sha256 {run.labeler_sha256}, fingerprint {run.fingerprint}")
    for line in run.findings.words:
        print(line)
    if run.findings.verdict == "weak" and not config.quality.allow_weak_labeler:
        print("`labelmill generate` refuses this labeler unless quality.allow_weak_labeler: true")
    if guide := method_of(config.labeler).guide_file:
        print(f"{config.output}/labeler/{guide.name} {guide.meaning}")


@app.command()
def generate(
    run_file: RunFile,
    overrides: Overrides = None,
    keep_rejects: Annotated[bool, typer.Option("--keep-rejects", help="Write dropped candidates to rejects/.")] = False,
) -> None:
    """Make the dataset. After an interruption, rerun the same command to resume."""
    flags = ["execution.keep_rejects=true"] if keep_rejects else []
    config = load_config(run_file, RunConfig, [*(overrides or ()), *flags])
    from labelmill.workers.generate import generate as run

    records = run(config)
    num_samples = sum(record.num_samples for record in records)
    num_candidates = sum(record.num_candidates for record in records)
    print(f"{config.output}: {num_samples} samples of {num_candidates} candidates in {len(records)} shards")


@app.command()
def status(output: Output, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show a run's progress."""
    from labelmill.pipeline.store.store import Store
    from labelmill.workers.status import status as look
    from labelmill.workers.status import status_lines

    found = look(Store.open(output))
    print(found.model_dump_json(indent=2) if as_json else "\n".join(status_lines(found)))


@app.command()
def verify(
    output: Output,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Rebuild parquet files, records, index and the manifest's counts from the shards."
        ),
    ] = False,
) -> None:
    """Read every byte of a dataset and check it against the manifest."""
    from labelmill.pipeline.dataset.verify import verify as check
    from labelmill.pipeline.store.store import Store
    from labelmill.schemas.errors import VerificationError

    result = check(Store.open(output), repair=repair)
    for line in result.repaired:
        print(f"repaired: {line}")
    if result.problems:
        count = len(result.problems)
        raise VerificationError(
            "\n".join([f"{output}: {count} problem{'s' * (count > 1)}", *(f"  {line}" for line in result.problems)])
        )
    print(f"{output}: {result.num_samples} samples in {result.num_shards} shards, all verified")


@app.command()
def resolve(
    root: Root,
    split: Annotated[str | None, typer.Option(help="Only the shards of this split, such as train.")] = None,
) -> None:
    """Print the URLs of the live snapshot's shards, one per line, for a training job."""
    from labelmill.pipeline.nightly.commands import open_root, shard_urls

    print("\n".join(shard_urls(open_root(root), split)))


@app.command()
def report(output: Output) -> None:
    """Write report/index.html: pictures and statistics of a dataset."""
    from labelmill.pipeline.report.report import write_report
    from labelmill.pipeline.store.store import Store
    from labelmill.workers.preview import redrawing

    store = Store.open(output)
    with redrawing(store) as redraw:
        path = write_report(store, redraw)
    print(f"{output.rstrip('/')}/{path}")


@app.command()
def train(
    config_file: Annotated[Path, typer.Argument(help="The training file (YAML).", metavar="TRAIN.YAML")],
    overrides: Overrides = None,
) -> None:
    """Train a segmentation network on a dataset. Rerun to resume; use torchrun for several GPUs."""
    from labelmill.pipeline.segmentation.evaluate import as_lines
    from labelmill.pipeline.segmentation.train import CURVES_FILE, LOG_FILE, METRICS_FILE, MODEL_FILE
    from labelmill.pipeline.segmentation.train import train as run
    from labelmill.schemas.segmentation import SegmentationTrainingConfig

    config = load_config(config_file, SegmentationTrainingConfig, overrides or ())
    metrics = run(config)
    for line in as_lines(metrics.final) if metrics.final else ():
        print(line)
    steps = f"{metrics.steps} of {config.optimisation.steps} steps, {metrics.seconds:.0f} s"
    print(f"{config.output / MODEL_FILE}: {steps}; {METRICS_FILE}, {CURVES_FILE} and {LOG_FILE} are beside it")


TrainedModel = Annotated[Path, typer.Argument(help="A model.safetensors from `labelmill train`.", metavar="MODEL")]


@app.command()
def predict(
    model: TrainedModel,
    photos: Annotated[Path, typer.Argument(help="Folder of photos, including its subfolders.", metavar="PHOTOS")],
    out: Annotated[Path, typer.Option(help="Folder for the masks (PNG, with the photos' paths and sizes).")],
    side: Annotated[
        int | None, typer.Option(min=8, help="Photos' shorter side in the network (default: as in training).")
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(help="Folder for the photos tinted by their masks (PNG), to look at.")
    ] = None,
) -> None:
    """Label a folder of photos with a trained network."""
    from labelmill.pipeline.networks.segmenter import load_segmenter
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.segmentation.predict import predict_folder

    segmenter, card = load_segmenter(model, choose_device())
    count = predict_folder(
        segmenter,
        photos,
        out,
        side or min(card.image_shape.size),
        overlays=overlays,
        num_classes=len(card.classes),
    )
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(card.classes))
    print(f"{out}: {count} masks of {classes}")


@app.command("export-onnx")
def export_onnx(
    model: TrainedModel,
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="MODEL.ONNX")],
) -> None:
    """Export a trained network to ONNX and check it against PyTorch with onnxruntime."""
    import torch

    from labelmill.pipeline.networks.segmenter import load_segmenter
    from labelmill.pipeline.segmentation.onnx_export import export_onnx as export

    segmenter, card = load_segmenter(model, torch.device("cpu"))
    difference = export(segmenter, card, out)
    print(
        f"{out}: images [batch, 3, height, width] in [0, 1] to logits, best at {card.image_shape.size_in_words}; "
        f"onnxruntime agrees within {difference:.1g}"
    )


@app.command("train-generator")
def train_generator(
    config_file: Annotated[Path, typer.Argument(help="The training file (YAML).", metavar="TRAIN.YAML")],
    overrides: Overrides = None,
) -> None:
    """Train a StyleGAN2 generator on a folder, on shards or on a named domain. Rerun to resume."""
    from labelmill.pipeline.generator.training.train import train_generator as train
    from labelmill.schemas.training import TrainGeneratorConfig

    train(load_config(config_file, TrainGeneratorConfig, overrides or ()))


@app.command("train-prompt-model")
def train_prompt_model(
    out: Annotated[Path, typer.Option(help="Folder for state, log and weights; rerun to resume.")],
    cache: Annotated[Path | None, typer.Option(help="Folder of drawn avatars (default OUT/cache).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of training steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images per batch.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of PyTorch threads.")] = None,
) -> None:
    """Train the bundled prompt model of the avatars domain on drawn avatars and their captions."""
    from labelmill.pipeline.benchmark.prompts.train import WEIGHTS_FILE, PromptTraining, train_avatars_prompts

    asked: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "threads": threads}
    config = PromptTraining(**{key: value for key, value in asked.items() if value is not None})
    train_avatars_prompts(config, out, cache or out / "cache")
    print(out / WEIGHTS_FILE)


def main() -> None:
    """Run a command in this process, which ends soon after a signal whatever it waits for."""
    restart_with_process_settings()
    end_soon_after_signals()
    try:
        run_command()
    finally:
        keep_exit_status()


def run_command() -> None:
    """Run the command line; the one place where an error becomes an exit status."""
    try:
        check_log_variable()
        with interruptible():
            app(prog_name="labelmill")
    except LabelmillError as error:
        log(f"labelmill: {error}", level="error")
        sys.exit(error.exit_code)
    except Interrupted as error:
        log(f"labelmill: {interrupted_words(str(error))}", level="warning")
        sys.exit(EXIT_RESUMABLE)


if __name__ == "__main__":
    main()
