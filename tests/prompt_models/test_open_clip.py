"""open_clip models from local files: dense features by the formula and by other routes, and files that are refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.prompt_models import PromptModelError, open_prompt_model
from labelmill.pipeline.prompt_models.open_clip import DENSE_SCALE, OpenClip, find_architecture, read_weights

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "vit": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}
Files = tuple[Path, Path, nn.Module]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """Configuration, weights and model of a tiny random CLIP of each kind."""
    folder, files = tmp_path_factory.mktemp("clip"), {}
    for kind, vision in VISION.items():
        config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}
        torch.manual_seed(0)
        model = open_clip.CLIP(**config).eval()
        for name, tensor in model.named_parameters():
            if name.endswith(("bias", "bn3.weight")):  # those that start at 0 hide mistakes
                nn.init.normal_(tensor, std=0.3)
        described = folder / f"{kind}.json"
        described.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
        weights = folder / f"{kind}.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
        files[kind] = described, weights, model
    return files


@pytest.fixture(params=["resnet", "vit"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(files: Files) -> OpenClip:
    model = open_prompt_model(f"open-clip:{files[0]}@{files[1]}", "cpu")
    assert isinstance(model, OpenClip)
    return model


def images(num: int, size: int) -> Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def normalised(images_BCHW: Tensor) -> Tensor:
    mean, std = (torch.tensor(PREPROCESS[key])[:, None, None] for key in ("mean", "std"))
    return ((images_BCHW + 1) / 2 - mean) / std


# What it says


def test_embeddings_are_those_of_open_clip(saved: dict[str, Files], kind: str) -> None:
    model, reference = opened(saved[kind]), saved[kind][2]
    images_BCHW = images(11, VISION[kind]["image_size"])
    with torch.no_grad():
        expected_BE = reference.encode_image(normalised(images_BCHW), normalize=True)
        tokens = open_clip.SimpleTokenizer(context_length=12)(["a hat", "a person with a beard"])
        expected_PE = reference.encode_text(tokens, normalize=True)
    torch.testing.assert_close(model.embed_images(images_BCHW), expected_BE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.embed_prompts(["a hat", "a person with a beard"]), expected_PE)
    assert model.embed_prompts([]).shape == (0, 12)
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_images_of_other_sizes_are_resampled(saved: dict[str, Files], kind: str) -> None:
    model, size = opened(saved[kind]), VISION[kind]["image_size"]
    large_BCHW = images(2, 3 * size)[:, :, :, : 2 * size]
    small_BCHW = functional.interpolate((large_BCHW + 1) / 2, (size, size), mode="bicubic", antialias=True)
    expected_BE = model.embed_images(small_BCHW.clamp(0, 1) * 2 - 1)
    torch.testing.assert_close(model.embed_images(large_BCHW), expected_BE, rtol=1e-4, atol=1e-5)


def test_a_place_of_a_resnet_is_what_its_attention_pool_makes_of_that_place_alone(saved: dict[str, Files]) -> None:
    """Attention over equal positions is the identity, so without positions the pool gives c_proj(v_proj(x))."""
    model, reference = opened(saved["resnet"]), saved["resnet"][2]
    visual, size = reference.visual, DENSE_SCALE * 64
    maps = []
    handle = visual.layer4.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    positions = visual.attnpool.positional_embedding.data.clone()
    with torch.no_grad():
        visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(normalised(images(2, size)))))))
        handle.remove()
        visual.attnpool.positional_embedding.data.zero_()
        dense_BEhw = model.dense(images(2, size))
        assert dense_BEhw.shape == (2, 12, 8, 8)
        for row, column in ((0, 0), (3, 5), (7, 7)):
            everywhere = maps[0][:, :, row, column][:, :, None, None].expand(-1, -1, 2, 2)
            torch.testing.assert_close(dense_BEhw[:, :, row, column], visual.attnpool(everywhere), rtol=1e-4, atol=1e-5)
    visual.attnpool.positional_embedding.data.copy_(positions)


def test_a_place_of_a_vit_is_its_last_block_with_attention_masked_to_itself(saved: dict[str, Files]) -> None:
    model, reference = opened(saved["vit"]), saved["vit"][2]
    visual = reference.visual
    with torch.no_grad():
        x_BLD = visual._embeds(normalised(images(3, 32)))
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x_BLD = block(x_BLD)
        alone_LL = torch.full((17, 17), float("-inf")).fill_diagonal_(0.0)
        expected_BLE = visual.ln_post(last(x_BLD, attn_mask=alone_LL)) @ visual.proj
    dense_BEhw = model.dense(images(3, 32))
    assert dense_BEhw.shape == (3, 12, 4, 4)
    torch.testing.assert_close(dense_BEhw.flatten(2).transpose(1, 2), expected_BLE[:, 1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(last(x_BLD)[:, 1:], last(x_BLD, attn_mask=alone_LL)[:, 1:], atol=1e-3)


def test_an_image_is_judged_alike_in_any_batch(saved: dict[str, Files], kind: str) -> None:
    model, images_BCHW = opened(saved[kind]), images(10, 40)
    for look in (model.embed_images, model.dense):
        together = look(images_BCHW)
        assert torch.equal(look(images_BCHW[9:])[0], together[9])
        assert torch.equal(look(images_BCHW[:3]), together[:3])


def test_named_by_reference_and_hash(saved: dict[str, Files]) -> None:
    described, weights, _ = saved["vit"]
    model = opened(saved["vit"])
    assert model.name == f"open-clip:{described}@{weights}"
    assert model.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


# Files


def test_state_dicts_of_other_shells_are_read(saved: dict[str, Files], tmp_path: Path) -> None:
    described, _, reference = saved["vit"]
    tensors = {f"module.{key}": value for key, value in reference.state_dict().items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "epoch.pt")
    other = open_prompt_model(f"open-clip:{described}@{tmp_path / 'epoch.pt'}", "cpu")
    assert torch.equal(other.dense(images(1, 32)), opened(saved["vit"]).dense(images(1, 32)))


def test_half_precision_weights_are_computed_in_float32(saved: dict[str, Files], tmp_path: Path) -> None:
    described, _, reference = saved["resnet"]
    halves = {
        key: value.half() if value.is_floating_point() else value for key, value in reference.state_dict().items()
    }
    save_file(halves, tmp_path / "half.safetensors")
    model = open_prompt_model(f"open-clip:{described}@{tmp_path / 'half.safetensors'}", "cpu")
    whole = opened(saved["resnet"]).embed_images(images(2, 64))
    assert model.embed_images(images(2, 64)).dtype == torch.float32
    torch.testing.assert_close(model.embed_images(images(2, 64)), whole, rtol=0.02, atol=0.01)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript, which is still around
def test_unusable_weights_are_refused(saved: dict[str, Files], tmp_path: Path) -> None:
    described, weights, _ = saved["resnet"]

    def refusal(path: Path) -> str:
        with pytest.raises(PromptModelError) as caught:
            open_prompt_model(f"open-clip:{described}@{path}", "cpu")
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert ": hf download timm/resnet50_clip.openai " in refusal(tmp_path / "missing.safetensors")
    short = tmp_path / "short.safetensors"
    short.write_bytes(weights.read_bytes()[:-100])
    assert "damaged" in refusal(short)
    assert "name the architecture they belong to" in refusal(saved["vit"][1])
    text = tmp_path / "page.pt"
    text.write_text("<html>404</html>")
    assert "take the .safetensors" in refusal(text)
    script = tmp_path / "RN50.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(script))
    assert "TorchScript" in refusal(script)
    torch.save([1, 2], tmp_path / "list.pt")
    assert "no state dict" in refusal(tmp_path / "list.pt")
    torch.save({"epoch": 3, "logit_scale": torch.zeros(())}, tmp_path / "other.pt")
    assert "no state dict: 'epoch' is not a tensor" in refusal(tmp_path / "other.pt")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    random, tensors = Random(0), {f"a{number}": torch.arange(12.0).reshape(3, 4) for number in range(3)}
    for number, is_zip in enumerate((True, False)):
        torch.save(tensors, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=is_zip)
    whole = [(tmp_path / f"{number}.pt").read_bytes() for number in range(2)]
    for content in whole:
        assert all(torch.equal(value, tensors[key]) for key, value in read_weights(Path("a.pt"), content).items())
    num_refused = 0
    for _ in range(1000):
        damaged = bytearray(random.choice(whole)[: random.choice((random.randrange(1, 2000), None))])
        for _ in range(random.randrange(4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        try:
            read_weights(Path("a.pt"), bytes(damaged))
        except PromptModelError as error:
            num_refused += "a.pt: " in str(error)
    assert num_refused > 400


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickled_model_is_not_executed(saved: dict[str, Files], tmp_path: Path, plain: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "model.pt"
    if plain:
        path.write_bytes(pickle.dumps(_Payload(marker)))
    else:
        torch.save({"state_dict": _Payload(marker)}, path)
    with pytest.raises(PromptModelError, match=r"not a file that torch\.save writes|nothing was executed"):
        open_prompt_model(f"open-clip:{saved['vit'][0]}@{path}", "cpu")
    assert not marker.exists()


def test_architectures_without_known_dense_features_are_refused(saved: dict[str, Files], tmp_path: Path) -> None:
    weights = saved["vit"][1]
    for architecture in ("ViT-B-16-SigLIP", "convnext_base", "coca_ViT-B-32", "roberta-ViT-B-32"):
        with pytest.raises(PromptModelError, match="no dense features or which need a download"):
            open_prompt_model(f"open-clip:{architecture}@{weights}", "cpu")
    for architecture in ("RN51", "hf-hub:timm/resnet50_clip.openai"):
        with pytest.raises(PromptModelError, match=r"no architecture '.*it has RN50"):
            open_prompt_model(f"open-clip:{architecture}@{weights}", "cpu")
    broken = tmp_path / "config.json"
    for content in ("{", "[]", '{"embed_dim": 3}'):
        broken.write_text(content)
        with pytest.raises(PromptModelError, match="not an open_clip configuration"):
            open_prompt_model(f"open-clip:{broken}@{weights}", "cpu")


def test_architectures_by_name_come_from_open_clip() -> None:
    found = find_architecture(open_clip, "RN50x64")
    assert found.model["vision_cfg"]["image_size"] == 448 and found.model["embed_dim"] == 1024
    assert (found.mean, found.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert find_architecture(open_clip, "RN50-quickgelu").model["quick_gelu"] is True


def test_without_the_package_the_extra_is_named(saved: dict[str, Files], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PromptModelError, match=r"pip install 'labelmill\[clip\]'"):
        opened(saved["vit"])


def test_references_in_no_known_form_are_refused() -> None:
    for reference in ("", "clip", "bundled:nothing", "open-clip:RN50", "open-clip:@x.safetensors"):
        with pytest.raises(PromptModelError, match=r"avatars-prompts"):
            open_prompt_model(reference, "cpu")
