"""What a file is that holds no StyleGAN2 generator, in one sentence."""

from collections.abc import Iterable

from labelmill.pipeline.generator.checkpoints.contents import Contents
from labelmill.pipeline.generator.checkpoints.inert import MAX_NAME, UnreadableError, text_of

_GIVE_GENERATOR = "Give the file of a StyleGAN2 generator"
_MAX_LISTED = 6


class NoGeneratorError(UnreadableError):
    """The file was read, and no generator is in it."""


def describe_missing_generator(contents: Contents) -> NoGeneratorError:
    """The error to raise, which says what was found instead and what to do."""
    names = list(contents.entries)
    first = {name.split(".")[0] for name in names}
    if first & {"bg_extractor", "bg_extractor_ema"}:
        return NoGeneratorError(
            "a Labels4Free alpha network (bg_extractor) without its generator: it only works on top of the StyleGAN2 "
            "it was trained with",
            "Give that generator's file, and this one as labeler.weights of labeler.method: alpha_network",
        )
    for signs, what in _OTHERS:
        if any(sign in f".{name}" for name in names for sign in signs):
            return NoGeneratorError(what, _GIVE_GENERATOR)
    if any(f".{name}".endswith((".final_conv.0.weight", ".b4.fc.weight")) for name in names):
        return NoGeneratorError(
            "holds a discriminator but no generator",
            "Use the file that training saved, with G_ema (NVIDIA's code) or g_ema (rosinality's)",
        )
    for path in ("G_ema", "G", "g_ema", ""):
        if path in contents.modules:
            module = contents.modules[path]
            parts = sorted(text_of(name) for name in list(module.group("_modules"))[:8])
            return NoGeneratorError(
                f"not a StyleGAN2 generator: {module.class_name} is made of {_listed(parts) or 'nothing'}",
                _GIVE_GENERATOR,
            )
    return NoGeneratorError(
        f"holds no StyleGAN2 generator; its entries are {_listed(map(repr, contents.keys[:_MAX_LISTED]))}"
        f"{' ...' if len(contents.keys) > _MAX_LISTED else ''}"
    )


# What tensors' names, with a dot in front, hold in networks that are often taken for StyleGAN2.
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".progression.",), "a StyleGAN1 checkpoint (rosinality's style-based-gan-pytorch); StyleGAN2 works"),
    ((".synthesis.input.", ".synthesis.L0_"), "a StyleGAN3 state dict or StyleGAN3 generator; StyleGAN2 works"),
    ((".G.blocks.", ".S.net."), "a network of lucidrains' stylegan2-pytorch, which is another one than StyleGAN2"),
    ((".synthesis.b4.conv1.", ".b4.torgb."), "the layers of a StyleGAN2 without the constant that they begin with"),
    ((".b4.const",), "the synthesis network of a StyleGAN2 alone, without its mapping"),
)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name[:MAX_NAME] for name in names)
