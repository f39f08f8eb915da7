"""Generators found wherever they lie in a file, under the names of any library that has the same network."""

import argparse
import datetime
import io
import os
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from generator.checkpoints.checkpoint_files import (
    basicsr_state,
    genforce_state,
    hammer_state,
    images,
    mmgeneration_state,
    module_of,
    nvidia_module,
    nvidia_pickle,
    random_discriminator,
    random_generator,
    relative_difference,
    rosinality_discriminator,
    rosinality_state,
    torch_file,
    torch_file_of_nvidia,
)
from safetensors.torch import save
from torch import Tensor, nn

from labelmill.pipeline.generator.checkpoints import (
    CheckpointError,
    LoadedCheckpoint,
    open_checkpoint,
    parse_checkpoint,
)
from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import latents

State = OrderedDict[str, Tensor]


def nvidia_state(generator: Generator) -> State:
    return OrderedDict(generator.state_dict())


LIBRARIES: dict[str, tuple[Callable[[Generator], State], str]] = {
    "NVIDIA": (nvidia_state, "state dict of NVIDIA's StyleGAN2"),
    "rosinality": (rosinality_state, "rosinality checkpoint"),
    "BasicSR": (basicsr_state, "BasicSR checkpoint"),
    "MMGeneration": (mmgeneration_state, "MMGeneration checkpoint"),
    "GenForce": (genforce_state, "GenForce checkpoint"),
    "Hammer": (hammer_state, "Hammer checkpoint"),
}


def as_npz(state: State, *, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    arrays = {name: tensor.detach().numpy() for name, tensor in state.items()}
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


CONTAINERS: dict[str, Callable[[State], bytes]] = {
    ".pt": torch_file,
    "old .pt": lambda state: torch_file(state, stream=True),
    ".pkl": lambda state: pickle.dumps(dict(state), protocol=4),
    ".pkl of arrays": lambda state: pickle.dumps({k: v.detach().numpy()[()] for k, v in state.items()}, protocol=2),
    ".safetensors": lambda state: save({name: tensor.contiguous() for name, tensor in state.items()}),
    ".npz": lambda state: as_npz(state, compressed=False),
    "compressed .npz": lambda state: as_npz(state, compressed=True),
    "module": lambda state: torch_file(module_of(state)),
    "old module": lambda state: torch_file(module_of(state), stream=True),
}


def behind(prefix: str, state: State) -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def loaded(value: object) -> LoadedCheckpoint:
    return parse_checkpoint("file.pt", value if isinstance(value, bytes) else torch_file(value))


def differs_by(found: LoadedCheckpoint, generator: Generator) -> float:
    """In images with the generator's own average, where the file has none."""
    if "w_avg" in found.info.provenance:
        found.generator.mapping.w_avg = generator.mapping.w_avg
    return relative_difference(images(found.generator), images(generator))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_librarys_names_in_every_container(library: str, container: str) -> None:
    generator = random_generator()
    write, format_ = LIBRARIES[library]
    found = loaded(CONTAINERS[container](write(generator)))
    is_nvidia_module = library == "NVIDIA" and "module" in container
    assert found.info.format == ("stylegan2-ada-pytorch pickle" if is_nvidia_module else format_)
    assert differs_by(found, generator) < 1e-6
    assert found.generator.spec == generator.spec


@pytest.mark.parametrize("library", ["rosinality", "BasicSR", "MMGeneration", "Hammer"])
def test_names_outside_the_network_are_refused(library: str) -> None:
    state = LIBRARIES[library][0](random_generator())
    state["convs.0.attention"] = torch.ones(1)
    with pytest.raises(
        CheckpointError, match=r"has 'convs\.0\.attention', unknown to StyleGAN2: a fork of .*can load$"
    ):
        loaded(state)


def others() -> State:
    """Another generator's weights."""
    return rosinality_state(random_generator(9))


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "module": lambda state: {"g_ema": behind("module.", state)},
    "compiled": lambda state: {"g_ema": behind("_orig_mod.", state)},
    "both": lambda state: {"g_ema": behind("module._orig_mod.", state)},
    "encoder": lambda state: {
        "state_dict": {**behind("encoder.", OrderedDict(a=torch.ones(2))), **behind("decoder.", state)},
        "opts": {"device": "cuda", "stylegan_size": 16},
    },
    "params_ema": lambda state: {"params": others(), "params_ema": state},
    "smooth": lambda state: {"generator": others(), "discriminator": {}, "generator_smooth": state},
    "mmgen": lambda state: {"state_dict": {**behind("generator.", others()), **behind("generator_ema.module.", state)}},
    "nested": lambda state: {"model": {"ema": {"state_dict": state}}, "epoch": 3},
    "lightning": lambda state: {"state_dict": behind("model.generator.", state), "hyper_parameters": {"size": 16}},
    "tuple": lambda state: (state, 5),
    "list": lambda state: {"run": [{"G_ema": state}]},
    "beside": lambda state: {**state, "d": {"final_conv.0.weight": torch.ones(3)}, "iteration": torch.tensor(7)},
    "averaged by torch": lambda state: {"n_averaged": torch.tensor(3), **behind("module.", state)},
    "attributes": lambda state: argparse.Namespace(generator=others(), generatorEMA=state),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_any_key_and_any_prefix(wrapping: str) -> None:
    generator = random_generator()
    assert differs_by(loaded(WRAPPINGS[wrapping](rosinality_state(generator))), generator) < 1e-6


def test_a_state_dict_saved_in_parts() -> None:
    generator = random_generator()
    parts = {"mapping": generator.mapping.state_dict(), "synthesis": generator.synthesis.state_dict()}
    assert torch.equal(images(loaded({"G": parts}).generator), images(generator))


def test_the_averaged_generator_is_named() -> None:
    found = loaded({"state_dict": {**behind("net.", others()), **behind("net_ema.module.", others())}})
    assert found.info.provenance["weights"] == "state_dict.net_ema"


def test_a_choice_is_left_to_the_user() -> None:
    content = {"trainable": others(), "frozen": others()}
    with pytest.raises(
        CheckpointError, match=r"several generators, 'trainable' and 'frozen', .*Save the one to use alone"
    ):
        loaded(content)
    same = others()
    assert loaded({"one": same, "other": same}).info.provenance["weights"] == "one"


@pytest.mark.parametrize("rows", [0, 1, 6, 18])
@pytest.mark.parametrize("key", ["latent_avg", "w_avg", "dlatent_avg", "mean_latent"])
def test_an_average_of_equal_rows_is_used(rows: int, key: str) -> None:
    generator = random_generator()
    average = generator.mapping.w_avg
    stored = average.expand(rows, -1).clone() if rows else average[None, None]
    found = loaded({"state_dict": behind("decoder.", rosinality_state(generator)), key: stored})
    assert not {"w_avg", "file's average"} & found.info.provenance.keys()
    assert torch.equal(found.generator.mapping.w_avg, average)


def test_an_average_that_cannot_be_used_is_said() -> None:
    state = rosinality_state(random_generator())
    differing = torch.arange(72.0).reshape(6, 12)
    for average, reason in ((differing, "6 rows that differ"), (torch.ones(7), "has shape (7,), w has 12 numbers")):
        provenance = loaded({"g_ema": state, "latent_avg": average}).info.provenance
        assert provenance["w_avg"].startswith("estimated")
        assert reason in provenance["file's average"]


def test_a_class_embedding_that_was_dropped_is_named() -> None:
    for write in (rosinality_state, basicsr_state, mmgeneration_state):
        with pytest.raises(CheckpointError) as raised:
            loaded({"g_ema": write(random_generator(c_dim=3))})
        assert str(raised.value) == (
            "file.pt: the first mapping layer takes 24 numbers, w has 12: exported from a conditional generator "
            "without its class embedding; give the original .pkl, which works"
        )
    with pytest.raises(CheckpointError, match=r"takes 6 numbers, w has 12: .*; give the original \.pkl, which works$"):
        loaded({"g_ema": rosinality_state(random_generator(z_dim=6))})
    stored = random_generator(c_dim=3)
    del stored.mapping.embed
    attributes = {"mapping": {"c_dim": 3, "w_dim": 12}}
    with pytest.raises(CheckpointError, match=r"of 3 classes without its class embedding; give the original \.pkl"):
        loaded(nvidia_pickle(stored, attributes=attributes))


@pytest.mark.parametrize("write", [nvidia_state, genforce_state, hammer_state])
@pytest.mark.parametrize("changes", [{"z_dim": 20}, {"mapping_width": 30}, {"mapping_width": 5, "z_dim": 7}])
def test_other_widths_of_the_mapping(write: Callable[[Generator], State], changes: dict[str, int]) -> None:
    generator = random_generator(**changes)
    found = loaded(write(generator))
    assert found.generator.spec == generator.spec
    assert relative_difference(images(found.generator), images(generator)) < 1e-6


@pytest.mark.parametrize("architecture", ["orig", "resnet"])
def test_other_architectures_and_classes_of_libraries_that_have_them(architecture: str) -> None:
    for write, c_dim in ((nvidia_state, 3), (hammer_state, 3), (genforce_state, 0)):
        if write is genforce_state and architecture == "resnet":
            continue
        generator = random_generator(architecture=architecture, c_dim=c_dim)
        found = loaded(write(generator))
        assert found.generator.spec == generator.spec
        assert relative_difference(images(found.generator), images(generator)) < 1e-6


def test_genforce_and_hammer_are_told_apart() -> None:
    state = {k: v for k, v in hammer_state(random_generator()).items() if k != "w_avg" and not k.endswith(".filter")}
    with pytest.raises(CheckpointError, match="a generator of GenForce or Hammer, which have the same names"):
        loaded(state)


def test_what_a_state_dict_cannot_say_is_said() -> None:
    doubtful = loaded(nvidia_state(random_generator(z_dim=24))).info.provenance["assumed"]
    assert "unconditional, with latents of 24 numbers" in doubtful
    assert "no conv_clamp" in loaded(nvidia_state(random_generator())).info.provenance["assumed"]
    assert "blue, green, red" in loaded(mmgeneration_state(random_generator())).info.provenance["assumed"]
    assert "assumed" not in loaded({"g_ema": rosinality_state(random_generator())}).info.provenance


def test_the_bilinear_variant_of_basicsr_is_refused() -> None:
    """It has the same tensors; torch saves the names of modules beside them."""
    state = basicsr_state(random_generator())
    state._metadata = {"style_convs.0.modulated_conv.smooth": {"version": 1}}  # type: ignore[attr-defined]
    assert loaded({"params_ema": state}).info.format == "BasicSR checkpoint"
    state._metadata = {"style_convs.0.modulated_conv": {"version": 1}}  # type: ignore[attr-defined]
    module = module_of(state)
    del module.get_submodule("style_convs.0.modulated_conv").smooth
    for stored in ({"params_ema": state}, module):
        with pytest.raises(CheckpointError, match="its bilinear variant"):
            loaded(stored)


@pytest.mark.parametrize("attribute", ["lr_mul", "bscale"])
def test_the_multiplier_that_a_module_remembers_counts(attribute: str) -> None:
    generator, stored = random_generator(), random_generator()
    for index in range(2):
        for parameter in stored.mapping.get_submodule(f"fc{index}").parameters():
            parameter.data *= 0.01 / 0.5
    write = {"lr_mul": mmgeneration_state, "bscale": genforce_state}[attribute]
    module = module_of(write(stored))
    for name, layer in module.named_modules():
        if name in ("style_mapping.1", "style_mapping.2", "mapping.dense0", "mapping.dense1"):
            setattr(layer, attribute, 0.5)
    assert relative_difference(images(loaded(module).generator), images(generator)) < 1e-5


class Wrapper:
    """What a module that holds another one, for several devices or compiled, pickles as."""

    def __init__(self, module: object) -> None:
        self._parameters: dict[str, object] = {}
        self._buffers: dict[str, object] = {}
        self._modules = {"module": module}


class Settings(dict[str, object]):
    """A dictionary of a class that is not known where the file is read."""


def extras() -> dict[str, object]:
    """What trainings save beside their networks."""
    return {
        "device": torch.device("cuda", 0),
        "dtype": torch.float16,
        "path": Path("data"),
        "stats": defaultdict(list, {"loss": [1.0]}),
        "date": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        "args": argparse.Namespace(size=16, device=torch.device("cpu")),
        "numbers": [np.float32(0.5), np.int64(3), np.random.RandomState(0)],
        "sizes": {(4, 4): 1, frozenset({1}): 2, 2**100: 3},
        "complex": torch.ones(2, dtype=torch.complex64),
        "objects": np.array([None, "x"], dtype=object),
        "module": nn.Linear(2, 2),
        "losses": dict.fromkeys(range(2000), 0.5),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_unknown_names_beside_the_generator_stay_names(protocol: int) -> None:
    """Of a foreign discriminator too, as in files of projects that replace it."""
    generator = random_generator()
    attributes = {"": {"_init_args": (), "device": torch.device("cpu")}}
    content = nvidia_pickle(generator, attributes=attributes, D=nn.Linear(2, 2), protocol=protocol, extras=extras())
    found = loaded(content)
    assert torch.equal(images(found.generator), images(generator))
    assert "'torch.nn.modules.linear.Linear'" in found.info.provenance["other names"]
    assert "nothing of them was executed" in found.info.provenance["other names"]
    found = loaded({"g_ema": rosinality_state(generator), **extras()})
    assert differs_by(found, generator) < 1e-6


def test_only_what_the_generator_needs_can_refuse() -> None:
    state = rosinality_state(random_generator())
    assert loaded({"g_ema": state, "d": {"final_conv.0.weight": torch.ones(2, dtype=torch.complex64)}})
    with pytest.raises(CheckpointError, match=r"style\.1\.weight .*ComplexFloatStorage, .*Save the weights alone"):
        loaded({"g_ema": {**state, "style.1.weight": torch.ones(12, 12, dtype=torch.complex64)}})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("package", ["", "project.models.third_party."])
def test_pickles_of_nvidias_code_wherever_it_is_copied_to(protocol: int, package: str) -> None:
    generator = random_generator()
    content = nvidia_pickle(generator, kwargs={"synthesis_kwargs": {}}, protocol=protocol)
    name, vendored = (f"{start}torch_utils.persistence".encode() for start in ("", package))
    if protocol < 4:
        content = content.replace(b"c" + name + b"\n", b"c" + vendored + b"\n")
    elif package:
        content = b"\x80\x04" + content[2 + 9 :].replace(
            b"\x8c" + bytes([len(name)]) + name, b"\x8c" + bytes([len(vendored)]) + vendored
        )
    assert vendored in content
    found = loaded(content)
    assert found.info.format == "stylegan2-ada-pytorch pickle"
    assert torch.equal(images(found.generator), images(generator))


@pytest.mark.parametrize("package", ["project.dnnlib.util", "easydict"])
def test_settings_in_dictionaries_of_other_classes(package: str) -> None:
    generator = random_generator(architecture="resnet")
    content = nvidia_pickle(
        generator, kwargs={"synthesis_kwargs": Settings(architecture="resnet")}, protocol=3, settings=Settings(a=1)
    )
    own = f"c{Settings.__module__}\nSettings\n".encode()
    assert content.count(own) == 1
    found = loaded(content.replace(own, f"c{package}\nEasyDict\n".encode()))
    assert found.info.format == "stylegan2-ada-pytorch pickle"
    assert torch.equal(images(found.generator), images(generator))
    content = nvidia_pickle(generator, kwargs={"synthesis_kwargs": Settings(other=1)})
    with pytest.raises(CheckpointError, match="unknown architecture option 'other' = 1"):
        loaded(content)


def test_a_module_of_nvidias_saved_by_torch() -> None:
    """As pivotal tuning saves it, alone or wrapped for several devices."""
    generator = random_generator()
    attributes = {"": {"_init_kwargs": {"synthesis_kwargs": {}}}}
    layers = ("b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1", "b8.torgb", "b16.conv0", "b16.conv1", "b16.torgb")
    attributes |= {f"synthesis.{name}": {"conv_clamp": 0.5} for name in layers}
    stored = nvidia_module(generator, "Generator", attributes)
    for value in (stored, {"G": stored}, Wrapper(stored), [Wrapper(Wrapper(stored))]):
        found = loaded(torch_file_of_nvidia(value))
        assert found.info.format == "stylegan2-ada-pytorch pickle"
        assert torch.equal(images(found.generator), images(random_generator(conv_clamp=0.5)))
        assert "assumed" not in found.info.provenance


@pytest.mark.parametrize("write", [rosinality_discriminator, lambda network: network.state_dict()])
def test_discriminators_are_found_wherever_they_lie(write: Callable[[nn.Module], dict[str, Tensor]]) -> None:
    network = random_discriminator()
    generator = behind("generator_ema.", nvidia_state(random_generator()))
    content = torch_file({"state_dict": generator, "nets": {"discriminator": write(network)}})
    found = parse_checkpoint("file.pt", content, discriminator=True)
    assert found.info.has_discriminator and found.discriminator is not None
    images_BCHW = torch.randn(4, 3, 16, 16)
    assert relative_difference(found.discriminator(images_BCHW), network(images_BCHW)) < 1e-6


def foreign_files() -> list[Path]:
    """Files with expected images of seeds 0 to 7, in a folder that LABELMILL_CONFORMANCE names."""
    folder = os.environ.get("LABELMILL_CONFORMANCE")
    files = sorted(Path(folder).iterdir()) if folder else []
    return [path for path in files if path.with_suffix(".expected.npz").exists() and path.suffix != ".npz"]


@pytest.mark.parametrize("path", foreign_files(), ids=lambda path: path.name)
def test_files_of_other_peoples_code(path: Path) -> None:
    with np.load(path.with_suffix(".expected.npz")) as stored:
        expected_BCHW = stored["img"]
    if "without-embedding" in path.name:
        with pytest.raises(CheckpointError, match=r"give the original \.pkl, which works$"):
            open_checkpoint(str(path))
        return
    found = open_checkpoint(str(path))
    generator = found.generator
    psi = 1.0 if "w_avg" in found.info.provenance else 0.7
    ws_BLD = generator.truncate(generator.map(latents(range(8), generator.spec.z_dim)), psi)
    assert relative_difference(generator.synthesize(ws_BLD).images_BCHW, expected_BCHW) < 1e-5
