"""The run file's section of the few-shot labeler, and of its heads."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, Section, check_seed_range

Members = Annotated[int, Field(ge=1, le=32)]


class LinearHeadConfig(Section):
    """Multinomial logistic regression on the features of single pixels: convex, so that nothing depends on a random
    start, and penalised so strongly that a few images suffice."""

    type: Literal["linear"] = "linear"
    """Name of the head."""
    components: int | None = Field(256, ge=2)
    """Principal components that the features are reduced to, at most as many as there are features. null: none."""
    penalty: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Weight of the squared coefficients beside the mean loss of a pixel. `auto`: by the number of annotated images."""
    class_weight: float = Field(0.25, ge=0, le=1)
    """Pixels of a class weigh its share of all pixels to the power of minus this: 0 weighs all pixels alike, 1 all
    classes."""
    steps: int = Field(40, ge=1, le=1000)
    """Most iterations of L-BFGS."""
    members: Members = 6
    """Regressions whose mean probability decides. Each weighs the annotated images, and the parts of an image, by
    random numbers (Bayesian bootstrap): how far members disagree tells how sure a mask is."""


class MlpHeadConfig(Section):
    """Perceptrons on single pixels, whose mean probability decides (Zhang et al., DatasetGAN, CVPR 2021). Defaults are
    the settings of the authors' code, which lets members vote instead and gives parts of fewer than 30 pixels to the
    background; they go with `normalisation: none` and `foreground: learned`."""

    type: Literal["mlp"]
    """Name of the head."""
    hidden: list[Annotated[int, Field(ge=1, le=4096)]] = Field([128, 32], min_length=1, max_length=8)
    """Widths of the hidden layers."""
    members: Members = 10
    """Perceptrons, each from other random weights."""
    epochs: int = Field(100, ge=1, le=100_000)
    """Most passes over the labeled pixels. From the fifth on, training stops after 50 batches without a new lowest
    loss."""
    batch_pixels: int = Field(64, ge=2)
    """Pixels per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam."""


class CnnHeadConfig(Section):
    """Dilated convolutions on whole maps (Tritrong et al., RepurposeGAN, CVPR 2021), which see what is around a pixel.
    Defaults are the settings of the authors' code; they go with `normalisation: none` and `foreground: learned`."""

    type: Literal["cnn"]
    """Name of the head."""
    size: Literal["small", "medium", "large"] = "large"
    """`large` is the network of the authors' code: 8 convolutions with dilations from 1 to 8. `medium` and `small` have
    7 and 5, with dilations of up to 4 and 2."""
    members: Members = 1
    """Networks, each from other random weights."""
    epochs: int = Field(1000, ge=1, le=100_000)
    """Passes over the annotated images, one per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam, at first; every 50 epochs it falls by a tenth."""
    weight_decay: float = Field(1e-3, ge=0)
    """L2 penalty on all weights."""


class DecoderHeadConfig(Section):
    """A decoder over the outputs of the generator's blocks (Galeev et al., 2020). Defaults are the settings of the
    authors' later code; they go with `normalisation: none` and `foreground: learned`."""

    type: Literal["decoder"]
    """Name of the head."""
    width: int = Field(128, ge=1, le=1024)
    """Most channels of its layers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the numbers that are left out in training."""
    members: Members = 1
    """Decoders, each from other random weights."""
    epochs: int = Field(24, ge=1, le=100_000)
    """Passes over the annotated images, one per step."""
    images_per_epoch: int = Field(5, ge=1)
    """Fewer images than these are shown more often."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of Adam."""


def _type_of(values: Any) -> Any:
    """The kind of a head; linear unless it names another."""
    if isinstance(values, dict):
        return str(values.get("type", LinearHeadConfig.model_fields["type"].default))
    return getattr(values, "type", None)


HeadConfig = Annotated[
    Annotated[LinearHeadConfig, Tag("linear")]
    | Annotated[MlpHeadConfig, Tag("mlp")]
    | Annotated[CnnHeadConfig, Tag("cnn")]
    | Annotated[DecoderHeadConfig, Tag("decoder")],
    Discriminator(_type_of),
]


class FewShotConfig(LocatedSection):
    """Classes from a handful of annotated images of the generator.

    `fit` synthesises the annotated images again, reads the generator's features at their labeled pixels and teaches a
    head, which labels a sample from its own synthesis. What needs no annotation is learned from images without any:
    which directions of the features only recolour, and what the foreground is.
    """

    method: Literal["few_shot"]
    """Name of the labeling method."""
    annotations: str = Field(pattern=PRINTABLE)
    """Folder with the annotated images, as `labelmill annotate` makes it, relative to the run file. Its content, not
    its path, is part of the run."""
    head: HeadConfig = LinearHeadConfig()
    """What is learned from the annotations."""
    layers: list[str] | Literal["auto"] = "auto"
    """Convolutions whose features are read, such as [b16.conv1, b32.conv1]. `auto`: all up to 256 px; for a decoder the
    last of each block up to 128 px."""
    normalisation: Literal["none", "standardised", "style"] = "style"
    """How features are scaled: not at all, by their standard deviations over images without annotations, or so and then
    by what style mixing changes within a pixel (`style`), so that directions which only recolour count less."""
    foreground: Literal["label_free", "learned", "auto"] = "auto"
    """What decides between background (the first class) and the rest: the annotations alone (`learned`), or together
    with the foreground that style mixing finds without labels (`label_free`). `auto`: the latter where it agrees with
    the annotations."""
    least_agreement: float = Field(0.9, ge=0, le=1)
    """Least IoU (mean of foreground and background) of the label-free foreground with the annotations for
    `foreground: auto`."""
    style_mixing: StyleMixingConfig = StyleMixingConfig()
    """How style mixing looks for that foreground, and its donors and first row, which `normalisation: style` uses."""
    statistics_samples: int = Field(64, ge=2)
    """Images without annotations from which features are scaled: the first of `style_mixing.fit_first_seed`."""
    statistics_variants: int = Field(6, ge=2, le=64)
    """Style-mixed variants per image for `normalisation: style`."""
    drop_portion: float = Field(0, ge=0, le=0.9)
    """Share of the candidates, those that `drop_by` is least sure of, that the quality rules drop as `uncertain`. It
    holds in expectation: the limit is a quantile over `calibration_samples`."""
    drop_by: Literal["disagreement", "entropy", "jensen_shannon"] = "disagreement"
    """Measure of uncertainty. `disagreement`: share of a mask's pixels that members label otherwise. `entropy`: mean
    entropy of the pixels' probabilities. `jensen_shannon`: how far members' probabilities differ, mean of the tenth of
    the pixels where they differ most (DatasetGAN). The first and the last need a head with members."""
    calibration_samples: int = Field(512, ge=16)
    """Images without annotations from which the limit of `drop_portion` is learned."""
    calibration_first_seed: int = Field(4_250_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of these images; the others count up from it."""
    probabilities: bool = Field(False, exclude_if=lambda wanted: not wanted)
    """Samples also get {key}.probabilities.png: how likely each pixel is of each class, the mean of the members. With
    ten annotated images of the bundled generator the likeliest class has 94.3 % on average and is right in 95.1 %."""

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | list[str]) -> str | list[str]:
        if isinstance(layers, list) and (not layers or len(set(layers)) != len(layers)):
            raise ValueError(f"a list of layers must name at least one layer and each only once, got {layers}")
        return layers

    @model_validator(mode="after")
    def _check_together(self) -> "FewShotConfig":
        check_seed_range("calibration_first_seed", self.calibration_first_seed, self.calibration_samples)
        check_seed_range("style_mixing.fit_first_seed", self.style_mixing.fit_first_seed, self.statistics_samples)
        if self.style_mixing.parts != 1 or self.style_mixing.masks_from != "readout":
            raise ValueError(
                "style_mixing: only the foreground as a whole, read from features, is of use here; leave out parts and "
                "masks_from"
            )
        if self.statistics_variants > self.style_mixing.variants:
            raise ValueError(
                f"statistics_variants: {self.statistics_variants} of the {self.style_mixing.variants} donors of "
                f"style_mixing.variants; lower the first or raise the second"
            )
        if self.head.type in ("cnn", "decoder") and self.normalisation != "none":
            raise ValueError(
                f"normalisation: {self.normalisation}, but a {self.head.type} head takes features as they are; set none"
            )
        if self.drop_portion and self.drop_by != "entropy" and self.head.members == 1:
            raise ValueError(
                f"drop_by: {self.drop_by} compares members, and the head has one; raise head.members, or use entropy"
            )
        return self
