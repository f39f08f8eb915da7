"""CLIP and its kin through open_clip, from a local weights file, with dense features in the prompts' space.

The attention pool of a ResNet mixes positions; without it, its value and output projections at every position give
features that prompts can be compared with (MaskCLIP, Zhou et al. 2022, section 3.2; Segmentation in Style names its
clusters so). In a ViT every position of the last block attends to itself alone, which is the same idea.

Differences from the notebook of Segmentation in Style: its input is 2048 px for RN50x64, 4.6 times the size that the
model was trained at; here DENSE_SCALE times for every ResNet. A ViT sees its training size, since its positions are
learned for that grid.

Shape suffixes: B batch, C channels, H height, W width, P prompts, L positions, D inner width, E embedding, h, w sides
of the dense map.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.checkpoints.inert import Budget, UnreadableError, describe_value, text_of
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor
from labelmill.pipeline.generator.checkpoints.torch_archive import read_saved
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.torchvision_import import import_torchvision
from labelmill.pipeline.prompt_models.base import PromptModelError, check_images
from labelmill.schemas.user_path import expand_user

DENSE_SCALE = 4
"""How many times larger than in its training a ResNet sees an image for dense features."""
_BATCH_SIZE = 8
_MAX_NAME = 200
"""Images, or prompts, at once, always: the size of a batch chooses kernels and thereby bits."""
_HOW_TO_GET = (
    "labelmill downloads no models. To get one: hf download timm/resnet50_clip.openai "
    "open_clip_config.json open_clip_model.safetensors --local-dir rn50, then "
    "open-clip:rn50/open_clip_config.json@rn50/open_clip_model.safetensors"
)


@dataclass(frozen=True)
class Architecture:
    """What open_clip builds, and how images are made ready for it."""

    name: str
    model: dict[str, Any]
    """open_clip's own configuration of the model."""
    mean: tuple[float, float, float]
    """Of the training images' channels, in [0, 1]."""
    std: tuple[float, float, float]


class OpenClip:
    """A CLIP model, float32. Prompts and images are embedded as open_clip embeds them.

    embed_images sees whole images squeezed to the training's square, by bicubic interpolation, antialiased.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        architecture: Architecture,
        device: str | torch.device = "cpu",
        *,
        name: str,
        sha256: str,
    ) -> None:
        self.name, self.sha256, self.device = name, sha256, torch.device(device)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self._tokenizer, self._architecture = tokenizer, architecture
        self._is_resnet = hasattr(self.model.visual, "attnpool")
        self._size = architecture.model["vision_cfg"]["image_size"]

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before a softmax over prompts, as learned."""
        return float(self.model.logit_scale.exp())

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as vectors [P, E] float32 of unit length; what exceeds the model's context is cut off."""
        tokens_PT = self._tokenizer(list(prompts)) if prompts else torch.zeros(0, 1, dtype=torch.int64)
        parts = [torch.empty(0, self._architecture.model["embed_dim"], device=self.device)]
        for part_PT in tokens_PT.split(_BATCH_SIZE):
            if len(part_PT):
                with repeatable_kernels():
                    parts.append(self.model.encode_text(_filled(part_PT.to(self.device)))[: len(part_PT)])
        return functional.normalize(torch.cat(parts).float(), dim=1)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Whole images as vectors [B, E] float32 of unit length.

        images float32 RGB, nominally in [-1, 1], any size. Raises PromptModelError on other shapes.
        """
        return functional.normalize(self._each(images_BCHW, self._size, self.model.encode_image), dim=1)

    def dense(self, images_BCHW: Tensor) -> Tensor:
        """Features of every position in the prompts' space, float32 [B, E, h, w], not of unit length; the map covers
        the image. Takes and raises what `embed_images` does."""
        if self._is_resnet:
            return self._each(images_BCHW, DENSE_SCALE * self._size, self._dense_resnet)
        return self._each(images_BCHW, self._size, self._dense_transformer)

    def _each(self, images_BCHW: Tensor, size: int, look: Callable[[Tensor], Tensor]) -> Tensor:
        check_images(images_BCHW)
        seen = []
        for part_BCHW in images_BCHW.split(_BATCH_SIZE):
            prepared_BCHW = _filled(self._prepare(part_BCHW, size))
            with repeatable_kernels():
                seen.append(look(prepared_BCHW)[: len(part_BCHW)].float())
        return torch.cat(seen)

    def _prepare(self, images_BCHW: Tensor, size: int) -> Tensor:
        """In [0, 1], at the size, then less the mean and over the deviation of the training's images."""
        unit_BCHW = (images_BCHW.detach().to(self.device, torch.float32).clamp(-1, 1) + 1) / 2
        if unit_BCHW.shape[2:] != (size, size):
            unit_BCHW = functional.interpolate(unit_BCHW, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean_C11, std_C11 = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self._architecture.mean, self._architecture.std)
        )
        return (unit_BCHW - mean_C11) / std_C11

    def _dense_resnet(self, images_BCHW: Tensor) -> Tensor:
        visual = self.model.visual
        x_BDhw = visual.stem(images_BCHW)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x_BDhw = layer(x_BDhw)
        x_BhwD = x_BDhw.permute(0, 2, 3, 1)
        return visual.attnpool.c_proj(visual.attnpool.v_proj(x_BhwD)).permute(0, 3, 1, 2)

    def _dense_transformer(self, images_BCHW: Tensor) -> Tensor:
        visual = self.model.visual
        *blocks, last = visual.transformer.resblocks
        x_BLD = visual._embeds(images_BCHW)
        for block in blocks:
            x_BLD = block(x_BLD)
        x_BLD = x_BLD + last.ls_1(_attend_to_self(last.attn, last.ln_1(x_BLD)))
        x_BLD = x_BLD + last.ls_2(last.mlp(last.ln_2(x_BLD)))
        places_BLE = (visual.ln_post(x_BLD) @ visual.proj)[:, 1:]  # without the class token
        return places_BLE.transpose(1, 2).unflatten(2, visual.grid_size)


def load_open_clip(architecture: str, path: Path, device: str | torch.device = "cpu", *, name: str = "") -> OpenClip:
    """A model of an open_clip architecture from its weights, .safetensors or a PyTorch state dict.

    `architecture` is a name that open_clip knows, such as RN50 or ViT-B-32-quickgelu, or the path of a JSON file with
    its configuration, such as the open_clip_config.json of a download. OpenAI's weights need a `-quickgelu` name or
    that file. Nothing is downloaded or executed. Raises PromptModelError.
    """
    library = _import_open_clip()
    check_weights_file(path)
    found = find_architecture(library, architecture)
    content = path.read_bytes()
    tensors = read_weights(path, content)
    model = _build(library, found)
    _load_weights(model, tensors, path, found.name)
    text = found.model["text_cfg"]
    tokenizer = library.SimpleTokenizer(
        context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
    )
    digest = hashlib.sha256(content).hexdigest()
    return OpenClip(model, tokenizer, found, device, name=name or f"open-clip:{architecture}@{path}", sha256=digest)


def check_weights_file(path: Path) -> None:
    """Raises PromptModelError, which says where to get weights, unless there is a file."""
    if not path.is_file():
        raise PromptModelError(f"{path}: no such weights file. {_HOW_TO_GET}")


def find_architecture(library: ModuleType, architecture: str) -> Architecture:
    """By open_clip's name or from a JSON file. Raises PromptModelError where its dense features are not known."""
    preprocess: dict[str, Any] = {}
    if architecture.endswith(".json"):
        try:
            config = json.loads(expand_user(architecture).read_text(encoding="utf-8"))
            preprocess = config.get("preprocess_cfg", {})
            model = config.get("model_cfg", config)
            vision, text = model["vision_cfg"], model["text_cfg"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromptModelError(f"{architecture}: not an open_clip configuration ({error!r})") from error
    else:
        model = library.get_model_config(architecture) if ":" not in architecture else None
        if model is None:
            raise PromptModelError(
                f"open-clip has no architecture {architecture!r}; it has RN50, RN50x64, ViT-B-32, ViT-B-16, ViT-L-14 "
                "and others (python -c 'import open_clip; print(open_clip.list_models())'), or give the path of an "
                "open_clip_config.json"
            )
        vision, text = model["vision_cfg"], model["text_cfg"]
    _refuse_unknown_builds(architecture, model, vision, text)
    model = {**model, "vision_cfg": {"image_size": 224, **vision}}
    mean = tuple(preprocess.get("mean", library.OPENAI_DATASET_MEAN))
    std = tuple(preprocess.get("std", library.OPENAI_DATASET_STD))
    return Architecture(architecture, model, mean, std)


# What a configuration may ask for that has no value path as described above, or that would be downloaded.
_UNKNOWN_VISION = (
    "timm_model_name", "attentional_pool", "block_type", "final_ln_after_pool", "qk_norm", "scaled_cosine_attn",
    "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
)  # fmt: skip
_UNKNOWN_TEXT = ("hf_model_name", "hf_tokenizer_name")


def _refuse_unknown_builds(name: str, model: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> None:
    odd = [f"vision_cfg.{key}" for key in _UNKNOWN_VISION if vision.get(key)]
    odd += [f"text_cfg.{key}" for key in _UNKNOWN_TEXT if text.get(key)]
    odd += ["multimodal_cfg"] if model.get("multimodal_cfg") else []
    odd += ["vision_cfg.pool_type"] if vision.get("pool_type", "tok") != "tok" else []
    odd += ["vision_cfg.image_size"] if not isinstance(vision.get("image_size", 224), int) else []
    if odd:
        raise PromptModelError(
            f"open-clip architecture {name!r}: uses {', '.join(odd)}, for which labelmill has no dense features or "
            "which need a download; take CLIP's own ResNets (RN50 to RN50x64) or ViTs (ViT-B-32, ViT-B-16, ViT-L-14)"
        )


def _build(library: ModuleType, architecture: Architecture) -> nn.Module:
    settings = {key: value for key, value in architecture.model.items() if key != "custom_text"}
    build = library.CustomTextCLIP if architecture.model.get("custom_text") else library.CLIP
    try:
        model = build(**settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise PromptModelError(f"open-clip cannot build {architecture.name!r}: {error}") from error
    assert isinstance(model, nn.Module)
    return model


def read_weights(path: Path, content: bytes) -> dict[str, Tensor]:
    """Names and float32 tensors of a weights file, without executing anything in it. Raises PromptModelError."""
    if path.suffix == ".safetensors":
        try:
            return load(content)
        except SafetensorError as error:
            raise PromptModelError(f"{path}: damaged ({error}); download it again") from error
    try:
        found = read_saved(memoryview(content), Budget())
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        if not isinstance(found, dict) or not found:
            raise UnreadableError("holds no state dict")
        tensors = {text_of(key, _MAX_NAME).removeprefix("module."): value for key, value in found.items()}
        foreign = sorted(key for key, value in tensors.items() if not isinstance(value, StoredTensor))
        if foreign:
            found = describe_value(tensors[foreign[0]])
            raise UnreadableError(
                f"holds no state dict: {foreign[0][:60]!r} is not a tensor but {found}; nothing was executed"
            )
        return {key: value.to_float32() for key, value in tensors.items()}
    except UnreadableError as error:
        raise PromptModelError(f"{path}: {error}; take the .safetensors of the model") from error


def _load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path, architecture: str) -> None:
    own = model.state_dict()
    foreign, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
    other_shapes = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    complaints = [f"lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
    complaints += [f"has {foreign[0]} and {len(foreign) - 1} more that it does not know"] if foreign else []
    if other_shapes:
        key = other_shapes[0]
        complaints.append(f"{key} is {list(tensors[key].shape)}, not {list(own[key].shape)}")
    if complaints:
        raise PromptModelError(
            f"{path}: not the weights of {architecture}: {'; '.join(complaints)}; name the architecture they belong to"
        )
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()})


def _attend_to_self(attention: nn.MultiheadAttention, x_BLD: Tensor) -> Tensor:
    """What attention gives when each position sees itself alone: the value, then the output projection."""
    width = x_BLD.shape[2]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    assert weight is not None and bias is not None
    values_BLD = functional.linear(x_BLD, weight[2 * width :], bias[2 * width :])
    return attention.out_proj(values_BLD)


def _filled(rows: Tensor) -> Tensor:
    """The rows, and the first again until there are _BATCH_SIZE."""
    return torch.cat([rows, rows[:1].expand(_BATCH_SIZE - len(rows), *rows.shape[1:])])


def _import_open_clip() -> ModuleType:
    try:
        if importlib.util.find_spec("open_clip") is None:
            raise ImportError("no module named 'open_clip'")
        import_torchvision()  # which open_clip imports, and whose wheel needs help beside a CPU build of torch
        return importlib.import_module("open_clip")
    except (ImportError, ValueError) as error:
        raise PromptModelError(
            f"open-clip prompt models need the package open_clip_torch ({error}): pip install 'labelmill[clip]'"
        ) from error
