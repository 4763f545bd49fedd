"""Commands that make and measure bundles."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.terminal import out, stages, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.bundle import Bundle
    from engines.evaluation import Evaluation

Data = Annotated[
    Path, typer.Argument(help="Folder in the MVTec layout, one category of it, or good images.")
]
BundlePath = Annotated[Path, typer.Argument(help="Bundle folder or .zip.")]
Category = Annotated[
    list[str] | None, typer.Option("--category", help="Only this category; may be repeated.")
]
BackendName = Annotated[str, typer.Option(help="openvino, tensorrt, torch or torch-cuda.")]
Precision = Annotated[str, typer.Option(help="auto, f32, bf16, int8; tensorrt: fp16, fp8 too.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON.")]


def train(
    data: Data,
    out_path: Annotated[Path, typer.Option("--out", help="Where the bundle goes.")],
    config: Annotated[Path | None, typer.Option(help="YAML of training settings.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="fast (192 px, denoiser nano, strides 8 and 16, 1000 bank rows), balanced (256 px,"
            " tiny, strides 4 to 16, 2000 rows) or accurate (384 px with a copy of 256 px, tiny,"
            " 4000 rows, f32 only); all see by EfficientNet-Lite0, score by bank and scorer, leave"
            " early. --config and options win over it."
        ),
    ] = None,
    category: Category = None,
    method: Annotated[str | None, typer.Option(help="decodiff, glad, d3ad or drdc.")] = None,
    size: Annotated[str | None, typer.Option(help="Denoiser: nano, tiny, base or full.")] = None,
    codec: Annotated[str | None, typer.Option(help="features or vae.")] = None,
    tiles: Annotated[
        str | None, typer.Option(help="Cut large images: ROWSxCOLUMNS model inputs per image.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(help="Of neighbouring tiles, share of a tile; 0.1 if absent."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget of the denoiser.")] = None,
    based_on: Annotated[
        Path | None,
        typer.Option("--from", help="Bundle of the same images: take its codec, bank, scorer."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Train on good images, export and calibrate.

    Example: assayline train data/tiles --preset balanced --out runs/tiles
    """
    from engines.recipe import load_recipe
    from engines.workshop import train_bundle

    chosen = {
        "preset": preset,
        "method": method,
        "size": size,
        "codec": codec,
        "tiles": tiles,
        "overlap": overlap,
        "minutes": minutes,
        "seed": seed,
    }
    settings = load_recipe(config, {k: v for k, v in chosen.items() if v is not None})
    with stages() as progress:
        result = train_bundle(
            data,
            out_path,
            settings,
            category,
            based_on=based_on,
            resume=resume,
            date=_today(),
            progress=progress,
        )
    out.print(f"bundle {result.bundle.bundle_id} at {out_path}")
    for line in result.sentences:
        out.print(f"  {line}")


def sizes(
    config: Annotated[Path, typer.Argument(help="YAML of training settings.")],
    categories: Annotated[int, typer.Option(help="How many categories it serves.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Print parameters and FLOPs of a configuration beside the published ones; no weight is read.

    Example: assayline sizes configs/decodiff.full.yaml
    """
    from dataclasses import asdict

    from rich.table import Table

    from engines.recipe import configuration_of, load_recipe
    from engines.sizes import describe

    parts = describe(configuration_of(load_recipe(config, {}), categories))
    table = Table("part", title=f"{config}: of one image, beside what is published")
    for name in ("M parameters", "published", "GFLOP per call", "published"):
        table.add_column(name, justify="right")
    for part in parts:
        millions = None if part.parameters is None else part.parameters / 1e6
        counts = (millions, part.published_millions, part.gflop, part.published_gflop)
        table.add_row(part.name, *map(_counted, counts))
    out.print(table)
    if json_file:
        write_json(json_file, {"parts": [asdict(part) for part in parts]})


def _counted(number: float | None) -> str:
    """A count in as many digits as its source has."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 1000 else f"{number:,.2f}"


def calibrate(
    bundle: BundlePath,
    data: Data,
    max_false_reject: Annotated[float, typer.Option(help="Promised false-reject rate.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="Confidence of the promise.")] = 0.95,
    early_exit: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="Verdicts that leaving early may change; 0 = none."),
    ] = 0.05,
    category: Category = None,
    backend: BackendName = "openvino",
    precision: Precision = "auto",
) -> None:
    """Fit the threshold from good images that the bundle was not trained on.

    Example: assayline calibrate runs/tiles data/tiles --max-false-reject 0.02
    """
    from engines.calibration_fit import Wanted
    from engines.thresholds import calibrate_bundle

    with stages() as progress:
        calibration = calibrate_bundle(
            bundle,
            data,
            category,
            backend=backend,
            precision=precision,
            wanted=Wanted(max_false_reject, confidence, early_exit or None, _today()),
            progress=progress,
        )
    for key, entries in calibration.entries.items():
        for name, entry in entries.items():
            e = entry.evidence
            out.print(
                f"{key} {name}: fail above surprise {entry.threshold:.3f}; false rejects at most "
                f"{e.bound:.1%} with confidence {e.confidence:.0%} ({e.exceeding} of {e.good} good)"
            )
            for plan, early in entry.exit_evidence.items():
                out.print(f"  {early.sentence(plan)}")


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def evaluate(
    bundle: BundlePath,
    data: Data,
    category: Category = None,
    backend: BackendName = "openvino",
    precision: Precision = "auto",
    json_file: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for contact sheets and charts.")] = None,
    plans: Annotated[
        bool,
        typer.Option("--plans", help="A row for each forced plan, and for the chosen ones (-1)."),
    ] = False,
) -> None:
    """Measure a bundle on a test set with the field's metrics.

    Example: assayline evaluate runs/tiles data/tiles --plot runs/plots --json runs/tiles.json
    """
    from engines.bundle import open_bundle
    from engines.contracts import ADAPTIVE
    from engines.evaluation import evaluate as measure

    opened = open_bundle(bundle)
    forced = list(range(ADAPTIVE, len(opened.manifest.plans))) if plans else None
    with stages() as progress:
        result = measure(
            opened,
            data,
            category,
            backend=backend,
            precision=precision,
            plans=forced,
            plot=plot,
            progress=lambda done, total: progress(
                "evaluate", done / max(total, 1), f"{done} images"
            ),
        )
    _print_evaluation(result)
    if json_file:
        write_json(json_file, result.model_dump(mode="json"))


def _print_evaluation(result: Evaluation) -> None:
    """Tables that fit a terminal for people; else Markdown, ready for a README."""
    from rich.table import Table

    from engines.evaluation import origin, to_markdown
    from engines.tables import cells_of

    if not out.is_terminal:
        print(to_markdown(result))
        return
    head, *lines = cells_of(result)
    for title, first, last in (("Ranking", 1, 8), ("Depth", 8, len(head))):
        table = Table(head[0], title=title, title_justify="left", box=None, padding=(0, 1))
        for name in head[first:last]:
            table.add_column(name, justify="right", no_wrap=True)
        for cells in lines:
            table.add_row(cells[0], *cells[first:last])
        out.print(table)
    for told in filter(None, (origin(result), result.note)):
        out.print(told, style="dim", highlight=False)


def diagnose(
    bundle: BundlePath,
    data: Data,
    training: Annotated[
        Path | None, typer.Option(help="Folder of the training run; BUNDLE.training if absent.")
    ] = None,
    category: Category = None,
    json_file: JsonFile = None,
) -> None:
    """Say what limits a bundle: its evidence piece by piece, its codec, its learning curve.

    Example: assayline diagnose runs/tiles data/tiles --json runs/tiles-curve.json
    """
    from rich.table import Table

    from engines.bundle import open_bundle
    from engines.diagnosis import diagnose as measure

    folder = training or bundle.with_name(f"{bundle.name}.training")
    with stages() as progress:
        result = measure(
            open_bundle(bundle),
            folder,
            data,
            category,
            progress=lambda share, what: progress("diagnose", share, what),
        )
    pieces = Table("category", "evidence", "I-AUROC", "P-AP", title="Evidence, deepest plan")
    for piece in result.evidence:
        image = "-" if piece.image_auroc is None else f"{piece.image_auroc:.3f}"
        if piece.image_auroc_se is not None:
            image += f" ± {piece.image_auroc_se:.3f}"
        pixel = "-" if piece.pixel_ap is None else f"{piece.pixel_ap:.3f}"
        pieces.add_row(piece.category, piece.evidence, image, pixel)
    out.print(pieces)
    codec = Table("category", "inside", "outside", "contrast", "kept", title="Codec error (of 255)")
    for row in result.codec:
        kept = f"{row.kept:.0%}"
        codec.add_row(row.category, f"{row.inside}", f"{row.outside}", f"{row.contrast}", kept)
    curve = Table("category", "step", "I-AUROC of the denoiser alone", title="Learning curve")
    for point in result.curve:
        found = "-" if point.image_auroc is None else f"{point.image_auroc:.3f}"
        curve.add_row(point.category, str(point.step), found)
    out.print(codec)
    out.print(curve)
    out.print(result.origin, style="dim", highlight=False)
    if json_file:
        write_json(json_file, result.model_dump(mode="json"))


def build(
    bundle: BundlePath,
    data: Annotated[
        Path | None,
        typer.Argument(help="int8, fp8: good images to calibrate on; else the parity frames."),
    ] = None,
    backend: BackendName = "openvino",
    precision: Precision = "auto",
    compute: Annotated[
        list[str] | None,
        typer.Option("--compute", help="tensorrt: a GPU to build for (SM86, ...); may repeat."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Compile engines ahead of time; refused when the parity set disagrees.

    Example: assayline build runs/tiles --backend tensorrt --precision fp16 --compute SM89
    """
    from engines.bundle import open_bundle

    with stages() as progress:
        if precision == "int8" and backend != "tensorrt":
            for line in _quantised(open_bundle(bundle), backend, data, partial(progress, "int8")):
                out.print(line)
        report = _built(
            open_bundle(bundle), backend, precision, compute, data, partial(progress, "build")
        )
    out.print(report.sentence())
    if json_file:
        write_json(json_file, report.model_dump(mode="json"))


def _quantised(
    bundle: Bundle, backend: str, data: Path | None, progress: Callable[[float, str], None]
) -> list[str]:
    """Make a bundle's int8 graphs, and say what they are."""
    from engines.contracts import BadConfig
    from engines.quantisation import quantise
    from engines.thresholds import unseen_good

    if backend != "openvino":
        raise BadConfig(f"there is int8 for openvino and tensorrt, not for {backend}")
    made = quantise(bundle, unseen_good(bundle, data, None) if data else None, progress)
    return made.sentences()


def _built(
    bundle: Bundle,
    backend: str,
    precision: str,
    compute: list[str] | None,
    data: Path | None,
    progress: Callable[[float, str], None],
) -> Any:  # noqa: ANN401 - the report of either way
    """Only TensorRT's engines may be built where they cannot run."""
    if backend == "tensorrt":
        from engines.gpu.gate import build_and_gate
        from engines.thresholds import unseen_good

        images = unseen_good(bundle, data, None) if data else None
        return build_and_gate(bundle, precision, compute or (), progress, images)
    from engines.contracts import BadConfig
    from engines.parity import build_and_compare

    if compute:
        raise BadConfig(f"--compute names GPUs; {backend} builds for this machine, leave it out")
    return build_and_compare(bundle, backend, precision, lambda share: progress(share, ""))
