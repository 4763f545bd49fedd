"""Where a bundle is not the published method, in words that are shown with every result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.contracts import BY_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.recipe import TrainSettings

OWN_FEATURES = "efficientnet-lite0"  # of the feature codec, unless others are named
PUBLISHED_SIZES = {"DeCo-Diff": "full", "D3AD": "d3ad-full"}
PUBLISHED_FEATURES = {"GLAD": "facebook/dino-vitb8", "D3AD": "microsoft/resnet-34"}
FEWEST_STEPS = 15  # of GLAD's published settings
DECAY = "weight decay 1e-4 (the paper: .01)"
NAMES = {"GLAD": "DINO ViT-B/8", "D3AD": "the adapted ResNet-34"}


def substitutions_of(settings: TrainSettings, categories: int) -> list[str]:
    """Departures of what these settings train from the paper, one sentence part each."""
    named = _denoiser(settings) + _codec(settings) + _method(settings, categories)
    if has_bank(settings):
        rows = settings.bank_rows
        named.append(
            f"severity bank of {rows} rows per category in start, frames like good parts make no "
            "step (extension)"
        )
    if settings.preconditioned:
        named.append("preconditioned denoiser (extension)")
    if settings.whitened and settings.method == "DRDC-style":
        named.append(
            "heatmaps measured in good parts' changes; of the covers, the last (extension)"
        )
    elif settings.whitened:
        named.append(
            "map: Mahalanobis length of the change of the latent among good parts' changes "
            "(substitute for the published comparison)"
        )
    if settings.scorer:
        named.append("learned scorer over features and reconstruction (extension)")
    return [
        *named,
        "weights averaged over steps, gradients clipped, cosine decay (departures)",
        "small categories drawn more often, by the root of their size (departure)",
        "unknown category by label dropout (extension)",
        "clips and scales fitted on held-out good images",
    ]


def told_of(method: str, bundle_id: str, backend: str, substitutions: Sequence[str]) -> str:
    """What numbers are of, in one sentence that goes wherever they go."""
    named = "; ".join(substitutions) or "none named"
    return f"{method} (bundle {bundle_id}, {backend}), substitutions: {named}."


def looks_by(settings: TrainSettings) -> str | None:
    """The feature network's name or path; None for a VAE without one."""
    if settings.features is None:
        return OWN_FEATURES if settings.codec == "features" else None
    network: str = settings.features.get("path") or settings.features.get("network", "")
    return network


def has_bank(settings: TrainSettings) -> bool:
    """Whether there is a severity bank: it needs patch features."""
    return settings.bank_rows > 0 and looks_by(settings) is not None


def _denoiser(settings: TrainSettings) -> list[str]:
    published = PUBLISHED_SIZES.get(settings.method)
    is_published = settings.size == published or settings.size.startswith(BY_PATH)
    return [] if is_published else [f"denoiser size {settings.size}"]


def _codec(settings: TrainSettings) -> list[str]:
    if settings.codec == "features":
        seen = "the latent" if settings.whitened else "the latent and its feature layers"
        return [
            f"codec: {looks_by(settings)} features projected to {settings.channels} channels "
            "(substitute for the SD autoencoder)",
            f"anomaly map from {seen} (no decoder when scoring)",
        ]
    named = ["denoiser trained on cached posterior means (the paper samples each time)"]
    if not settings.vae.startswith(BY_PATH):
        own = f"codec: {settings.vae} VAE trained on the good images (substitute for SD KL-f8)"
        named.insert(0, own)
    return named


def _method(settings: TrainSettings, categories: int) -> list[str]:
    if settings.method == "GLAD":
        return [*_comparison(settings), *_glad(settings)]
    if settings.method == "D3AD":
        return [*_comparison(settings), *_d3ad(settings, categories)]
    if settings.method == "DRDC-style":
        return [
            "DRDC-style: its paper leaves values open; ours are in the configuration",
            "refinement inpaints the latent (the paper: at the image's own resolution)",
        ]
    return []


def _comparison(settings: TrainSettings) -> list[str]:
    """What input and reconstruction are compared by, where it is not the latent alone."""
    if settings.whitened:
        return []
    network, published = looks_by(settings), PUBLISHED_FEATURES[settings.method]
    compared = network if settings.codec == "vae" and network else "codec layers"
    named = []
    if compared != published:
        named.append(f"{compared} compared (substitute for {NAMES[settings.method]})")
    elif settings.method == "D3AD":
        named.append("ResNet-34 not adapted to the reconstructions")
    if settings.codec == "vae":
        named.append("both pictures decoded before they are compared (the paper: the input itself)")
    return named


def _glad(settings: TrainSettings) -> list[str]:
    options: dict[str, Any] = settings.options
    named = []
    if options.get("test", "latent") == "latent":
        named.append("in-loop test on latents (the paper: on features of decoded pictures)")
    if options.get("reach") != "everywhere" and not settings.whitened:
        reach = f"{float(options.get('reach', 1)):g}"
        named.append(f"matches looked for {reach} cells around (the paper: in the whole picture)")
    if (steps := int(options.get("steps", 10))) < FEWEST_STEPS:
        named.append(f"{steps} steps (the paper: {FEWEST_STEPS} or 25)")
    if not settings.size.startswith(BY_PATH):
        named.append("trained from scratch (the paper fine-tunes Stable Diffusion)")
    return [
        *named,
        "self-made anomalies (substitute for Perlin masks and DTD), drawn once for "
        f"{settings.variants} copies of each image",
        "no text prompt and no guidance",
        DECAY,
        "theta fitted on held-out good images (the paper: by the test metric), no foreground mask",
    ]


def _d3ad(settings: TrainSettings, categories: int) -> list[str]:
    if has_bank(settings):
        severity = "severity from the patch bank (substitute for 20 neighbours of whole frames)"
    else:
        severity = "no severity: every frame takes the deepest level"
    named = [severity, DECAY]
    if has_bank(settings):
        named.append("bins of held-out good images (the paper: of those trained on)")
    if not settings.whitened:
        named.append("maps scaled by held-out good images (the paper: by the test set)")
    if categories > 1:
        named.append("one network for all categories (the paper: one each)")
    return named
