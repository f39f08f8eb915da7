"""The run file's section of the style-mixing labeler."""

from typing import Literal

from pydantic import Field, model_validator

from labelmill.schemas.section import SEED_LIMIT, Section, check_seed_range


class StyleMixingConfig(Section):
    """Network-free masks: pixels of a segment change together under style mixing (Feng et al., CVPR 2023).

    `fit` recolours many images by mixing styles, clusters their pixels, and merges the clusters into foreground and
    background without a label. The paper does not publish its own settings; these were chosen on an earlier training of
    the bundled generator and on ideal recolourings of drawings.
    """

    method: Literal["style_mixing"] = "style_mixing"
    """Name of the labeling method."""
    masks_from: Literal["readout", "clusters"] = "readout"
    """`clusters`, the paper's way: every image is recoloured, and its own clusters are its mask. `readout`: clusters
    of the images of `fit` teach a linear read-out of the generator's features, solved in closed form, and an image is
    labeled from its own synthesis alone, with no variants. It averages out what clusters get wrong at random, and costs
    a tenth."""
    parts: int = Field(1, ge=1, le=32)
    """Parts that the foreground is split into, by how they are recoloured and where they lie; each means the same in
    every image. Classes are then `background`, `part_1`, ... (the largest first) instead of `foreground`."""
    variants: int = Field(16, ge=2, le=256)
    """Style-mixed variants of an image that are clustered. With `masks_from: clusters` the time a sample goes with
    them."""
    variant_resolution: int | Literal["auto"] | None = "auto"
    """Resolution at which variants are synthesised and clustered; masks are snapped to the image's edges. null: the
    image's. `auto`: the lowest, of 32 pixels or more, whose masks hardly differ from those of full variants on images
    of `fit`. Generators with an RGB output at full resolution alone (`orig`, `resnet`) cannot stop lower. Of
    rectangular images it is the number of the block where synthesis stops, such as 64 for b64."""
    crossover: int | Literal["auto"] = "auto"
    """First row of w taken from the donor. Lower rows keep the image's layout. `auto` chooses it in `fit`: the lowest
    row, hence the strongest change of colour, that both following settings allow."""
    min_layout_agreement: float = Field(0.5, ge=0, le=1)
    """`crossover: auto` asks that the edges of image and variants agree so well, from the row on: 0 as those of two
    different images, 1 as those of an image with itself."""
    max_foreground_loss: float = Field(0.01, ge=0, le=1)
    """`crossover: auto` asks that masks from the variants agree with masks from the unmixed images' own colours: their
    mIoU may be so much below that of the best row."""
    clusters: int = Field(8, ge=2, le=64)
    """k of k-means. Above 2, clusters are merged into foreground and background by evidence calibrated in
    `fit`; 2 is the paper's setting."""
    normalisation: Literal["none", "centred", "standardised"] = "standardised"
    """What is done to each pixel's vector over the variants before clustering: nothing, its mean colour
    subtracted, or that and division by its deviation (correlation)."""
    restarts: int = Field(4, ge=1, le=64)
    """k-means starts an image; the one with the least inertia is kept."""
    iterations: int = Field(10, ge=1, le=100)
    """Lloyd iterations a start, a fixed number so that the work never depends on the data."""
    donor_first_seed: int = Field(4_000_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of the donors count up from here. All images share the donors, in this order."""
    donor_truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of the donors: higher means stronger colours."""
    fit_samples: int = Field(128, ge=16)
    """Images that `fit` looks at."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of those images count up from here."""

    @model_validator(mode="after")
    def _check_seeds(self) -> "StyleMixingConfig":
        check_seed_range("donor_first_seed", self.donor_first_seed, self.variants)
        check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        return self
