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
    labeled from its own synthesis alone, without variants. The read-out averages out the random errors of clusters and
    takes a tenth of the time."""
    parts: int = Field(1, ge=1, le=32)
    """Parts that the foreground is split into, by how they are recoloured and where they lie; each means the same in
    every image. Classes are then `background`, `part_1`, ... (the largest first) instead of `foreground`."""
    variants: int = Field(16, ge=2, le=256)
    """Style-mixed variants clustered per image. With `masks_from: clusters` the time per sample grows with this
    number."""
    variant_resolution: int | Literal["auto"] | None = "auto"
    """Resolution at which variants are synthesised and clustered; masks are snapped to the image's edges. null: the
    image's. `auto`: the lowest, of 32 pixels or more, whose masks hardly differ from those of full variants on images
    of `fit`. Generators with an RGB output at full resolution alone (`orig`, `resnet`) cannot stop lower. Of
    rectangular images it is the number of the block where synthesis stops, such as 64 for b64."""
    crossover: int | Literal["auto"] = "auto"
    """First row of w taken from the donor. Lower rows keep the image's layout. `auto` chooses it in `fit`: the lowest
    row, hence the strongest change of colour, that the next two settings allow."""
    min_layout_agreement: float = Field(0.5, ge=0, le=1)
    """Least agreement between the edges of image and variants, from the row on, for `crossover: auto`: 0 as between two
    different images, 1 as between an image and itself."""
    max_foreground_loss: float = Field(0.01, ge=0, le=1)
    """Most mIoU that a row may lose against the best row for `crossover: auto`. The mIoU compares masks from the
    variants with masks from the unmixed images' own colours."""
    clusters: int = Field(8, ge=2, le=64)
    """k of k-means. Above 2, clusters are merged into foreground and background by evidence calibrated in
    `fit`; 2 is the paper's setting."""
    normalisation: Literal["none", "centred", "standardised"] = "standardised"
    """Normalisation of each pixel's vector over the variants before clustering: none, mean colour subtracted
    (`centred`), or also divided by its standard deviation (`standardised`: correlation)."""
    restarts: int = Field(4, ge=1, le=64)
    """k-means starts per image; the start with the least inertia is kept."""
    iterations: int = Field(10, ge=1, le=100)
    """Lloyd iterations per start, a fixed number so that the work never depends on the data."""
    donor_first_seed: int = Field(4_000_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of the donors; the others count up from it. All images share the donors, in this order."""
    donor_truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of the donors: a higher value gives stronger colours."""
    fit_samples: int = Field(128, ge=16)
    """Images that `fit` learns from."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of these images; the others count up from it."""

    @model_validator(mode="after")
    def _check_seeds(self) -> "StyleMixingConfig":
        check_seed_range("donor_first_seed", self.donor_first_seed, self.variants)
        check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        return self
