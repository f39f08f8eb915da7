"""Reduced precision of the top resolutions stays within a stated bound of float32, on trained weights."""

import math

import pytest
import torch
from helpers.random_sampler import make_sampler

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import latents
from labelmill.pipeline.process.device import repeatable_kernels

# Peak signal-to-noise ratio of images in [-1, 1], in decibels. Emulated arithmetic gives 61 to 63 and 51 to 53.
BOUNDS = {torch.float16: 55.0, torch.bfloat16: 45.0}


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.bfloat16, id="cpu-bfloat16"),
        pytest.param("cuda", torch.float16, id="cuda-float16", marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, id="cuda-bfloat16", marks=pytest.mark.gpu),
    ],
)
def test_agreement_with_float32(device: str, dtype: torch.dtype) -> None:
    generator = open_checkpoint("bundled:avatars-32", device).generator
    with repeatable_kernels():
        ws_BLD = generator.truncate(generator.map(latents(range(16), 256).to(device)), 0.7)
        full = generator.synthesize(ws_BLD).images_BCHW
        generator.compute_dtype = dtype
        reduced = generator.synthesize(ws_BLD).images_BCHW
    assert reduced.dtype == torch.float32
    noise = (full - reduced).square().mean().item()
    assert noise > 0
    assert 10 * math.log10(4 / noise) > BOUNDS[dtype]


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.float32, "ieee"), (torch.bfloat16, "tf32")])
def test_float32_blocks_beside_half_precision_use_tf32(dtype: torch.dtype, wanted: str) -> None:
    generator = make_sampler(64).generator
    generator.compute_dtype = dtype
    seen: dict[str, set[str]] = {"convolution": set(), "matmul": set()}

    def look(module: torch.nn.Module, inputs: object) -> None:
        seen["convolution"].add(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
        seen["matmul"].add(torch.backends.cuda.matmul.fp32_precision)

    for block in generator.synthesis.children():
        block.conv1.register_forward_pre_hook(look)  # type: ignore[operator, union-attr]
    with repeatable_kernels():
        ws_BLD = torch.zeros(1, generator.spec.num_ws, generator.spec.w_dim)
        generator.synthesize(ws_BLD)
        generator.trunk(ws_BLD, 3)
        look(generator, ())
    assert seen == {"convolution": {wanted, "ieee"}, "matmul": {"ieee"}}
