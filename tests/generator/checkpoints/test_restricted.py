"""What a hostile or damaged pickle can do: nothing."""

import io
import pickle
import re
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from generator.checkpoints.checkpoint_files import (
    dump,
    nvidia_module,
    nvidia_pickle,
    random_generator,
    rosinality_state,
    tensorflow_pickle,
    torch_file,
)
from torch import nn

from labelmill.pipeline.generator.checkpoints import CheckpointError, parse_checkpoint
from labelmill.pipeline.generator.checkpoints.inert import (
    Budget,
    Record,
    UnreadableError,
    Unusable,
    describe_value,
    text_of,
)
from labelmill.pipeline.generator.checkpoints.restricted import read_pickle
from labelmill.pipeline.generator.checkpoints.tensors import BASIC_CONSTRUCTORS, StoredTensor
from labelmill.pipeline.generator.checkpoints.torch_archive import STREAM_MAGIC, read_saved, read_stream, read_zip


def read(content: bytes) -> object:
    return read_pickle(memoryview(content), BASIC_CONSTRUCTORS, Budget())


def call_of(name: str) -> bytes:
    """A pickle that calls a global with one text."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n(X\x08\x00\x00\x00touch metR.".encode()


def in_zip(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
    return buffer.getvalue()


def in_stream(program: bytes) -> bytes:
    """With the list of storages that follows the object: none."""
    return STREAM_MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + program + b"]."


def nested_in_pickle(program: bytes) -> bytes:
    """As a storage inside of an NVIDIA pickle."""
    payload = in_stream(program)
    length = struct.pack("<I", len(payload))
    return b"\x80\x04ctorch.storage\n_load_from_bytes\n(B" + length + payload + b"tR."


CONTAINERS = [lambda program: b"\x80\x04" + program, in_zip, in_stream, nested_in_pickle]


@pytest.mark.parametrize("wrap", CONTAINERS, ids=["pickle", "zip", "stream", "nested"])
@pytest.mark.parametrize(
    "name",
    [
        "os.system", "posix.system", "builtins.eval", "builtins.getattr", "subprocess.Popen", "torch.load",
        "torch._utils._import_dotted_name", "torch.hub.load", "numpy.load", "functools.partial", "operator.attrgetter",
        "collections.OrderedDict.clear", "torch_utils.persistence.persistent_class", "dnnlib.util.call_func_by_name",
        "labelmill.pipeline.store.store.Store",
    ],
)  # fmt: skip
def test_any_other_global_is_refused_by_its_name(wrap: Callable[[bytes], bytes], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"names '{name}'.*refused, nothing was executed"):
        parse_checkpoint("evil.pkl", wrap(call_of(name)))


def test_a_real_exploit_does_nothing(tmp_path: Path) -> None:
    """What pickle.loads would have run, for comparison, does run."""
    target = tmp_path / "was-here"

    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return subprocess.check_call, (["touch", str(target)],)

    content = pickle.dumps({"G_ema": Exploit()})
    with pytest.raises(CheckpointError, match=r"names 'subprocess\.check_call'"):
        parse_checkpoint("evil.pkl", content)
    # Protocol 2 knows the module under its name in Python 2.
    with pytest.raises(CheckpointError, match=r"names 'commands\.check_call'"):
        parse_checkpoint("evil.pt", torch_file({"g_ema": Exploit()}))
    assert not target.exists()
    pickle.loads(content)
    assert target.exists()


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (b"ctorch\nSize\nNR.", "calls with None for arguments"),
        (b"cos\n" + b"x" * 300 + b"\n.", "a global without a usable name"),
        (b"}(K\x01K\x02\x86K\x03s.", "sets items of|missing"),
        (b"K\x01K\x02a.", "appends to 1"),
        (b"\x82\x01.", "pickle operation 0x82"),
        (b"I1\n.", "pickle operation 0x49"),
        (b"K\x01Q.", "refers to data outside"),
        (b"j\xff\xff\xff\xff.", "was never remembered"),
        (b"\x8b\x00\x00\x00\x7f", "an integer of 2,130,706,432 bytes"),
        (b"cos" + b"x" * 5000 + b"\n.", "unfinished line"),
        (b"\x96" + b"\xff" * 8, "are announced at position"),
        (b"X\xff\xff\xff\x7f", "are announced at position"),
        (b"\x85.", "too few values"),
        (b".", "a value is missing"),
        (b"t.", "a value is missing"),
        (b"K\x01", "stops after 2 bytes, unfinished"),
        (b"\x80\x09.", "pickle protocol 9"),
    ],
)
def test_damage_is_described(program: bytes, sentence: str) -> None:
    with pytest.raises(UnreadableError, match=sentence):
        read(program)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (b"ctorch\nSize\n(NtR.", "None stands for a shape"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.", "numpy type 'O8'"),
        (b"cnumpy\nndarray\n)R.", r"calls numpy\.ndarray: refused"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", r"made by torch\._utils\._rebuild_tensor_v2 without its arguments"),
        (b"ctorch\nSize\n)}X\x01\x00\x00\x00aK\x01s\x92.", r"made by torch\.Size with keyword arguments"),
    ],
)
def test_what_a_constructor_cannot_use_only_matters_where_it_is_needed(program: bytes, sentence: str) -> None:
    found = read(program)
    assert isinstance(found, Unusable)
    assert re.search(sentence, found.reason)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (b"K\x01(tR.", "what a call returned"),
        (b"cbuiltins\ngetattr\n(K\x01tR(K\x02tR.", "builtins.getattr"),
        (b"cpathlib\nPosixPath\n(X\x01\x00\x00\x00atR.", "pathlib.PosixPath"),
        (b"cnumpy.random\nRandomState\n)\x81}X\x01\x00\x00\x00aK\x01sb.", "numpy.random.RandomState"),
        (b"ca.b\nC\n)}X\x01\x00\x00\x00aK\x01s\x92K\x01K\x02s.", "a.b.C"),
        (b"ccollections\ndeque\n)R(K\x01K\x02e.", "collections.deque"),
        (b"c__builtin__\ncomplex\n(K\x01K\x02tR.", "builtins.complex"),
    ],
)
def test_unknown_names_make_records(program: bytes, name: str) -> None:
    found = read(program)
    assert isinstance(found, Record)
    assert found.name == name


def test_keys_that_no_tensor_has_are_left_out() -> None:
    """Tuples could take forever to hash, and large numbers can be chosen to hash alike."""
    large = b"\x8a\x09" + (2**61 - 1).to_bytes(9, "little")
    assert read(b"}(K\x01K\x02\x86K\x03" + large + b"K\x04NK\x05u.") == {None: 5}


def test_plain_values_come_back_as_python_reads_them() -> None:
    value = {
        "numbers": [0, 1, -1, 255, 65535, 2**31 - 1, -(2**31), 2**70, -(2**70), 1.5, -0.0],
        "others": (None, True, False, (), ("a",), ("a", "b"), (1, 2, 3), (1, 2, 3, 4)),
        "text": ["", "é", "\N{GRINNING FACE}", "x" * 300],
        "bytes": [b"abc", b"\xff" * 300],
        "nested": {"a": {"b": [{}]}},
        3: "three",
    }
    value["shared"] = value["nested"]
    for protocol in (2, 3, 4, 5):
        assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays(dtype: str, order: str, protocol: int) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    found = read(pickle.dumps(array, protocol))
    tensor = found if isinstance(found, StoredTensor) else found.tensor  # type: ignore[attr-defined]
    assert torch.equal(tensor.to_float32(), torch.arange(24.0).reshape(2, 3, 4))


class Tagged(torch.Tensor):
    """Which torch pickles with its class and its attributes."""


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_other_devices_and_with_attributes(protocol: int) -> None:
    """Stored as numpy arrays, as those of TPUs, or beside a dictionary."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)

    class OfDevice:
        def __reduce__(self) -> tuple[object, ...]:
            return torch._utils._rebuild_device_tensor_from_numpy, (array, torch.float32, "xla:0", False)

    marked = torch.nn.Parameter(torch.from_numpy(array))
    marked.tag = "x"  # type: ignore[attr-defined]
    subclassed = torch.from_numpy(array).as_subclass(Tagged)
    subclassed.tag = "x"  # type: ignore[attr-defined]
    root = read_saved(memoryview(torch_file([marked, subclassed])), Budget())
    assert isinstance(root, list)
    for tensor in (read(pickle.dumps(OfDevice(), protocol)), *root):
        assert isinstance(tensor, StoredTensor)
        assert torch.equal(tensor.to_float32(), torch.from_numpy(array))


def test_numpy_numbers() -> None:
    values = [np.float64(1 / 3), np.float32(0.25), np.int64(-7), np.bool_(True)]
    assert read(pickle.dumps(values, 4)) == [1 / 3, 0.25, -7, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_views_of_a_shared_storage(stream: bool) -> None:
    """Transposed, strided and overlapping tensors come back as they were."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": base, "turned": base.t(), "part": base[1:3, ::2], "row": base[2], "one": base[3, 5]}
    generator = random_generator()
    content = torch_file({"g_ema": rosinality_state(generator), "extra": tensors}, stream=stream)
    assert parse_checkpoint("file.pt", content).generator.spec == generator.spec

    root = (read_stream if stream else read_saved)(memoryview(content), Budget())
    assert isinstance(root, dict)
    for name, tensor in tensors.items():
        assert torch.equal(root["extra"][name].to_float32(), tensor)


def rewritten(content: bytes, method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A zip archive written again, with members replaced or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name, data in ({name: old.read(name) for name in old.namelist()} | members).items():
            new.writestr(name, data)
    return buffer.getvalue()


def test_archives_of_other_writers_and_their_damage() -> None:
    generator = random_generator()
    content = torch_file({"g_ema": rosinality_state(generator)})
    assert parse_checkpoint("file.pt", rewritten(content)).generator.spec == generator.spec
    with pytest.raises(CheckpointError, match=r"is compressed, which torch\.save never does: refused"):
        parse_checkpoint("file.pt", rewritten(content, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="its member 'archive/data/0' is wrong"):
        position = content.index(rosinality_state(generator)["style.1.weight"].numpy().tobytes())
        parse_checkpoint("file.pt", content[:position] + b"\x00" + content[position + 1 :])
    with pytest.raises(CheckpointError, match="record data/0 has 2 bytes, its description 144 elements"):
        parse_checkpoint("file.pt", rewritten(content, **{"archive/data/0": b"ab"}))
    with pytest.raises(CheckpointError, match=r"a zip archive whose end is missing\. Fetch it again"):
        parse_checkpoint("file.pt", content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        parse_checkpoint("file.pt", rewritten(content, **{"archive/constants.pkl": b""}))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", b"")
    with pytest.raises(CheckpointError, match=r"a zip archive, but none that torch\.save writes"):
        parse_checkpoint("file.pt", buffer.getvalue())


def test_members_that_overlap_are_refused() -> None:
    """Many directory entries for the same bytes would take forever to check."""
    content = in_zip(b"N." + b"\x00" * 1000)
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry, record = content[start:end], bytearray(content[end:])
    record[10:12] = struct.pack("<H", 200)
    with pytest.raises(UnreadableError, match="members of the archive overlap"):
        read_zip(memoryview(content[:start] + entry * 200 + bytes(record)))


def test_sizes_are_believed_only_with_the_bytes_there() -> None:
    """A tensor may not be larger than its storage, however its strides are chosen."""
    state = {**rosinality_state(random_generator()), "style.1.weight": torch.zeros(1).expand(1000, 1000)}
    with pytest.raises(CheckpointError, match=r"style\.1\.weight .*\(1000, 1000\) lies outside its 1 stored elements"):
        parse_checkpoint("file.pt", torch_file({"g_ema": state}))
    with pytest.raises(CheckpointError, match=r"style\.1\.weight .* lies outside its 1 stored elements"):
        parse_checkpoint("file.pkl", dump({"g_ema": state}))


def test_widths_are_believed_only_when_all_tensors_agree() -> None:
    """One long bias alone would make layers of its square."""
    state = rosinality_state(random_generator())
    state["convs.1.conv.weight"] = torch.zeros(1, 60_000, 8, 1, 1)
    with pytest.raises(CheckpointError, match=r"a file of .* bytes describes a network of"):
        parse_checkpoint("file.pt", torch_file(state))
    state["convs.1.conv.weight"] = torch.zeros(1, 70_000, 8, 1, 1)
    with pytest.raises(CheckpointError, match="damaged"):
        parse_checkpoint("file.pt", torch_file(state))


def test_too_many_operations() -> None:
    with pytest.raises(UnreadableError, match="more than 1,000,000 pickle operations"):
        read(b"]" * 1_000_001)


def test_deep_nesting_is_only_data() -> None:
    """Python's own unpickler dies of a deeply nested key; here keys are scalars and nothing recurses."""
    assert read(b"})" + b"\x85" * 200_000 + b"Ns.") == {}
    assert isinstance(read(b")" + b"\x85" * 200_000 + b"."), tuple)


def shared(depth: int = 60) -> list[object]:
    """A list that holds another one twice, and so on: 2 ** depth places, a few bytes each in a pickle."""
    value: list[object] = []
    for _ in range(depth):
        value = [value, value]
    return value


# A list as `shared` makes, built from operations alone: each level is remembered by its number, the last one is left.
SHARED = b"]\x94" + b"".join(b"0](h%ch%ce\x94" % (number, number) for number in range(60))


def test_the_lists_of_these_tests_are_deep() -> None:
    value, depth = read(SHARED + b"."), 0
    while isinstance(value, list) and value:
        assert value[0] is value[1]
        value, depth = value[0], depth + 1
    assert depth == 60


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\ndtype\n(" + SHARED + b"tR.",
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR(K\x03" + SHARED + b"tb.",
        b"cnumpy.core.multiarray\n_reconstruct\n)R(" + SHARED + SHARED + SHARED + b"K\x00" + SHARED + b"tb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + SHARED * 4 + b"tR.",
        b"ctorch._utils\n_rebuild_parameter\n(" + SHARED + b"tR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + SHARED * 4 + b"tR.",
        b"ccollections\nOrderedDict\n(" + SHARED + b"tR.",
        b"c__builtin__\nset\n(" + SHARED + b"tR.",
        b"c_codecs\nencode\n(" + SHARED + SHARED + b"tR.",
        b"ctorch\nSize\n(" + SHARED + b"tR.",
        b"ca\nb\n(" + SHARED + b"tR" + SHARED + b"b.",
        b"ca\nb\n)" + SHARED + b"\x92.",
        SHARED + b"(tR.",
        SHARED + SHARED + b"\x93.",
        SHARED + SHARED + b"R.",
        SHARED + b"Q.",
        b"}(" + SHARED + b"K\x01u" + SHARED + b"b.",
        b"K\x01" + SHARED + b"a.",
    ],
)
def test_shared_references_cost_no_more_than_they_say(program: bytes) -> None:
    """A description of such a list, or its comparison with another one, would never end."""
    assert len(program) < 4000
    for wrap in CONTAINERS:
        with pytest.raises(CheckpointError) as raised:
            parse_checkpoint("file.pkl", wrap(program))
        assert len(str(raised.value)) < 1000


@pytest.mark.timeout(20)
def test_shared_references_as_settings_of_networks() -> None:
    bomb, generator = shared(), random_generator()
    state = rosinality_state(generator)
    files = [
        dump(bomb),
        dump({"G_ema": bomb, "g_ema": bomb, "state": bomb}),
        dump({"G_ema": nvidia_module(generator, bomb)}),  # type: ignore[arg-type]
        dump({"G_ema": nvidia_module(nn.Linear(2, 2), bomb)}),  # type: ignore[arg-type]
        nvidia_pickle(generator, kwargs={"synthesis_kwargs": {"unknown": bomb}}),
        nvidia_pickle(generator, kwargs={"synthesis_kwargs": bomb, "mapping_kwargs": bomb}),  # type: ignore[dict-item]
        nvidia_pickle(generator, kwargs={"square": bomb}),
        *[
            nvidia_pickle(generator, attributes={name: {attribute: bomb}})
            for name, attribute in (
                ("synthesis.b8.conv0", "activation"), ("synthesis.b8.conv0", "conv_clamp"),
                ("mapping.fc0", "bias_gain"), ("mapping", "c_dim"), ("", "_modules"), ("", "_parameters"),
            )
        ],
        torch_file({"g_ema": state, "latent_avg": bomb}),
        torch_file({"g_ema": {**state, "style.1.weight": bomb}, "more": bomb}),
        *[tensorflow_pickle(generator, settings={name: bomb}) for name in ("resample_kernel", "nonlinearity", "other")],
        tensorflow_pickle(generator, version=bomb),  # type: ignore[arg-type]
        tensorflow_pickle(generator, extra_variables={"dlatent_avg": bomb}),  # type: ignore[dict-item]
    ]  # fmt: skip
    for content in files:
        try:
            parse_checkpoint("file.pkl", content)
        except CheckpointError as error:
            assert len(str(error)) < 1000


@pytest.mark.timeout(20)
def test_dictionaries_of_shared_dictionaries_end() -> None:
    """A generator counts at a few of the places where it lies, down to a depth that no checkpoint has."""
    value: dict[str, object] = {"g_ema": rosinality_state(random_generator())}
    for depth in range(60):
        if depth == 20:
            assert parse_checkpoint("file.pt", torch_file(value)).generator.spec == random_generator().spec
        value = {"g_ema": value, "more": value}
    with pytest.raises(CheckpointError, match="holds no StyleGAN2 generator"):
        parse_checkpoint("file.pt", torch_file(value))


@pytest.mark.timeout(20)
def test_long_text_counts_each_time_it_is_turned_to_bytes() -> None:
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"\x94"
    encode = b"c_codecs\nencode\n\x94X\x06\x00\x00\x00latin1\x940"
    program = text + encode + b"]" + b"h\x01h\x00h\x02\x86Ra" * 200 + b"."
    with pytest.raises(CheckpointError, match="the same text stands for many times its bytes"):
        parse_checkpoint("file.pkl", b"\x80\x04" + program)


def test_text_made_of_a_value_is_short() -> None:
    values = ["x" * 1000, "a\nb", shared(), {"a": shared()}, (1,) * 1000, 2**100, Record("n" * 500, (shared(),)), None]
    for value in values:
        text = text_of(value)
        assert len(text) <= 115 and text.isprintable()
        assert len(describe_value(value)) <= 115


def test_values_that_contain_themselves() -> None:
    """A list in itself, a module in itself."""
    assert isinstance(read(b"]\x94h\x00a."), list)
    program = (
        b"\x80\x04}\x94ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
        b"}(X\x05\x00\x00\x00state}\x94X\x0a\x00\x00\x00class_nameX\x01\x00\x00\x00Gu\x85R\x94"
        b"h\x01X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00mh\x02ss"
    )
    with pytest.raises(CheckpointError):
        parse_checkpoint("file.pkl", program + b"00h\x00X\x05\x00\x00\x00G_emah\x02s.")
