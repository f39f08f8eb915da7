"""Mutated checkpoints, thousands of them: each must end in CheckpointError or a correct load, in bounded memory.

    python tests/generator/checkpoints/fuzz_checkpoints.py --count 20000

The process limits its own address space before it begins, so that an allocation out of proportion to the file ends
the run, and its processor time per file, so that one that would never end does too: the last line on the error stream
then names it. Every file is a function of --seed and its number: `--only N` repeats one.
"""

import argparse
import datetime
import faulthandler
import io
import json
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from generator.checkpoints import checkpoint_files as files

from labelmill.pipeline.generator.checkpoints import CheckpointError, parse_checkpoint
from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.checkpoints.tensors import BASIC_CONSTRUCTORS
from labelmill.pipeline.generator.checkpoints.torch_archive import STREAM_MAGIC

MAX_SECONDS_PER_FILE = 5.0
"""Of CPU: how long a busy machine lets it wait says nothing of the file."""
HANG_SECONDS = 10.0
"""Of CPU, after which the process is ended, whatever it is at."""
Mutation = Callable[[random.Random, list[bytes]], bytes]


def seed_files() -> list[bytes]:
    """The conformance files and small files of every other kind."""
    generator, discriminator = files.random_generator(), files.random_discriminator()
    contents = [(files.DATA / name).read_bytes() for name in files.CONFORMANCE_FILES]
    state = files.rosinality_state(generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "own.safetensors")
        save_generator(path, files.random_generator(const_size=(4, 2), img_channels=1), {"licence": "none"})
        own = path.read_bytes()
    return [
        *contents,
        own,
        files.nvidia_pickle(generator, kwargs={"channel_base": 64}, discriminator=discriminator),
        files.tensorflow_pickle(generator, discriminator=discriminator),
        files.torch_file({"g_ema": state, "args": argparse.Namespace(size=16)}),
        files.torch_file({"g_ema": state, "d": files.rosinality_discriminator(discriminator)}, stream=True),
        files.torch_file(state),
        *_seeds_of_other_kinds(),
    ]


def _seeds_of_other_kinds() -> list[bytes]:
    """Modules, state dicts under other names, and files full of names that stay names."""
    generator = files.random_generator()
    nvidia = OrderedDict(generator.state_dict())
    arrays = {name: tensor.numpy() for name, tensor in nvidia.items()}
    plain, compressed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(compressed, **arrays)
    extras = {
        "device": torch.device("cpu"), "type": torch.float16, "path": Path("data"), "args": argparse.Namespace(size=16),
        "date": datetime.datetime(2024, 1, 1), "sizes": {(4, 4): 1}, "set": {1, 2}, "complex": 1j,
        "states": [np.random.RandomState(0), np.float32(0.5)], "module": torch.nn.Linear(2, 2),
    }  # fmt: skip
    return [
        *[files.nvidia_pickle(generator, protocol=protocol, extras=extras) for protocol in (2, 3, 5)],
        files.torch_file(nvidia),
        plain.getvalue(),
        compressed.getvalue(),
        save({name: tensor.contiguous() for name, tensor in nvidia.items()}),
        files.torch_file({"generator_smooth": files.genforce_state(generator), **extras}),
        files.torch_file({"params_ema": files.basicsr_state(generator), "latent_avg": torch.ones(6, 12)}),
        files.torch_file({"state_dict": {f"g_ema.{k}": v for k, v in files.mmgeneration_state(generator).items()}}),
        files.torch_file(files.module_of(files.rosinality_state(generator)), stream=True),
        files.torch_file(files.hammer_state(generator)),
        pickle.dumps({"g": arrays, **extras}, protocol=2),
    ]


def _position(chance: random.Random, content: bytes) -> int:
    """Anywhere, but half of the time near names and operations, which are few among the numbers."""
    if chance.random() < 0.5:
        return chance.randrange(len(content))
    marks = (b"weight", b"torch", b"numpy", b"_modules", b"Storage", b"variables", b"PK\x01\x02", b"data_offsets", b"}")
    found = content.find(chance.choice(marks), chance.randrange(len(content)))
    return min(len(content) - 1, max(0, found + chance.randrange(-40, 60))) if found >= 0 else 0


def flip(chance: random.Random, seeds: list[bytes]) -> bytes:
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        content[_position(chance, content)] ^= 1 << chance.randrange(8)
    return bytes(content)


def overwrite(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Sizes, indices and lengths become extreme."""
    content = bytearray(chance.choice(seeds))
    extremes = (b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00\x00\x00\x80", b"\x00" * 4, b"\x00\x00\x00\x00\x10\x00\x00\x00",
                b"\x7f", b"r\xff\xff\xff\x7f", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\x7f" * 8)  # fmt: skip
    value, position = chance.choice(extremes), _position(chance, content)
    content[position : position + len(value)] = value
    return bytes(content)


def truncate(chance: random.Random, seeds: list[bytes]) -> bytes:
    content = chance.choice(seeds)
    return content[: chance.randrange(len(content))]


def splice(chance: random.Random, seeds: list[bytes]) -> bytes:
    first, second = chance.choice(seeds), chance.choice(seeds)
    return first[: _position(chance, first)] + second[_position(chance, second) :]


def shift(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A piece is cut out, doubled or put elsewhere."""
    content = chance.choice(seeds)
    start = _position(chance, content)
    piece = content[start : start + chance.choice((1, 4, 16, 256, 4096))]
    without = content[:start] + content[start + len(piece) :]
    target = _position(chance, content)
    return chance.choice(
        (without, content[:start] + piece + content[start:], without[:target] + piece + without[target:])
    )


def operations(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Random pickle operations, on their own or in the middle of a file."""
    codes = (
        b"(.012NJKMGTUX\x8c\x8dBC\x8e\x96)t\x85\x86\x87]ae\x8f\x90\x91}suqr\x94hjc\x93R\x81\x92bQ\x80\x95\x98\x88\x89"
    )
    program = b"\x80\x04" + bytes(chance.choice(codes) for _ in range(chance.choice((10, 100, 10_000)))) + b"."
    if chance.random() < 0.3:
        return program
    content = chance.choice(seeds)
    position = _position(chance, content)
    return content[:position] + program[2:] + content[position:]


def compressed_bomb(chance: random.Random, seeds: list[bytes]) -> bytes:
    """An archive of torch or numpy whose members unpack to up to 4 GiB; declared with or without the truth."""
    buffer = io.BytesIO()
    archive = chance.choice([content for content in seeds if content.startswith(b"PK")])
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        bomb = chance.choice(old.namelist())
        for name in old.namelist():
            new.writestr(name, bytes(8 * 2**20) if name == bomb else old.read(name))
    content = bytearray(buffer.getvalue())
    if chance.random() < 0.7:  # the directory lies about sizes and method
        entry = content.find(b"PK\x01\x02")
        for _ in range(chance.randrange(200)):
            following = content.find(b"PK\x01\x02", entry + 4)
            entry = following if following >= 0 else entry
        struct.pack_into("<H", content, entry + 10, chance.choice((0, 8, 12, 99)))
        size = chance.choice((0, 1, 8 * 2**20, 2**32 - 2, 2**32 - 1))
        struct.pack_into("<LL", content, entry + 20, size, chance.choice((size, 0)))
    return bytes(content)


def object_bomb(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Small pickles that ask for much."""
    count = chance.choice((1_000, 100_000, 1_500_000))
    huge = struct.pack("<I", 2**31 - 1)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR"
    programs = (
        b"}" * count,
        b"]" + b"]a" * (count // 2),
        b")" + b"\x85" * count,
        b"}" + b")" + b"\x85" * min(count, 100_000) + b"Ns",
        b")\x94" + b"h\x00h\x00\x86\x94" * 50 + b"}h2Ns",
        b"K\x01r" + huge,
        b"\x96" + b"\xff" * 7 + b"\x0f",
        b"\x8b" + huge,
        b"X" + huge,
        array + b"(K\x01J" + huge + b"J" + huge + b"\x86" + dtype + b"\x89C\x04abcdtb",
        b"(" + array + dtype + b"l" * 3,
        b"]\x94" + b"(h\x00" * 20 + b"h\x00" * 20 + b"e" * 20,
    )
    return b"\x80\x04" + chance.choice(programs) + b"."


def tensor_bomb(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Torch files with small storages and tensors that claim, alias or repeat much."""
    kind = chance.randrange(5)
    if kind == 4:  # the average over very many classes is to be estimated
        generator = files.random_generator(c_dim=60_000)
        del generator.mapping.w_avg
        return files.nvidia_pickle(generator)
    state = dict(files.rosinality_state(files.random_generator()))
    name = chance.choice(list(state))
    if kind == 0:
        state[name] = torch.zeros(1).expand(chance.choice((10, 2**20, 2**40)), 2**10)
    elif kind == 1:
        state[name] = torch.zeros(2**16)
    elif kind == 2:
        base = torch.zeros(2**18)
        sizes = {
            "style.1.weight": (2**9, 2**9),
            "convs.1.conv.weight": (1, 2**16, 4, 1, 1),
            "input.input": (1, 2**14, 4, 4),
        }
        state |= {key: base.view(shape) for key, shape in sizes.items()}
    else:
        base = torch.zeros(2**16)
        state = {f"convs.{index}.conv.weight": base for index in range(900)} | state
    return files.torch_file(state, stream=chance.random() < 0.3)


def header_bomb(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Safetensors files whose description asks for much."""
    if chance.random() < 0.4:
        return _foreign_header(chance, next(content for content in seeds[5:] if content[8:9] == b"{"))
    own = seeds[4]
    length = int.from_bytes(own[:8], "little")
    header = json.loads(own[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["labelmill"])
    key = chance.choice(list(inner["spec"]))
    sides = ([1, 10**7], [65_536, 65_536], [4])
    values = (*sides, 2**40, 10**9, -1, 0, 1.5, None, "many", [], [[4, 10**9]], {}, True, 65_536)
    if key == "channels" and chance.random() < 0.7:
        inner["spec"]["channels"] = [
            [size, chance.choice((1, 8, 65_536, 10**12))] for size, _ in inner["spec"]["channels"]
        ]
    else:
        inner["spec"][key] = chance.choice(values)
    header["__metadata__"]["labelmill"] = json.dumps(inner)
    if chance.random() < 0.3:
        header[chance.choice(list(header))] = chance.choice(({"dtype": "U16", "shape": [1], "data_offsets": [0, 2]}, 3))
    text = chance.choice((json.dumps(header).encode(), b"[" * 100_000, b"{" + b'"a":[' * 50_000))
    return len(text).to_bytes(8, "little") + text + own[8 + length :]


def _foreign_header(chance: random.Random, content: bytes) -> bytes:
    """Places, shapes and types of other programs' files."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    values = ([2**40], [], [0], [-1], ["x"], [[1]], "x", None, 2**70, [0, 2**40], [5, 4], "F64", "F8_E4M3", {}, 1e300)
    for _ in range(chance.choice((1, 3))):
        entry = header[chance.choice(list(header))]
        entry[chance.choice(list(entry))] = chance.choice(values)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def reference_bomb(chance: random.Random, seeds: list[bytes]) -> bytes:
    """Dictionaries that hold one another many times, as modules and networks."""
    shared: dict[str, object] = {f"key{index}": index for index in range(chance.choice((10, 5_000)))}
    for _ in range(chance.choice((3, 30))):
        shared = {f"key{index}": shared for index in range(chance.choice((2, 2_000)))}
    keys = ("G_ema", "g_ema", "state", "d", "_modules", "anything")
    return pickle.dumps({chance.choice(keys): shared, chance.choice(keys): shared}, protocol=4)


def shared_references(chance: random.Random, levels: int = 60) -> object:
    """Containers that hold one another twice, or themselves: more places than could ever be visited."""
    value: object = chance.choice(([], {}, (), "text", 1.5, None, b"bytes"))
    for _ in range(levels):
        kind = chance.randrange(4)
        if kind == 0:
            value = [value, value]
        elif kind == 1:
            value = (value, value)
        elif kind == 2:
            value = {"_modules": value, "state": value}
        else:
            value = {"g_ema": value, "input.input": value}
    if chance.random() < 0.3:
        loop: list[object] = [value]
        loop.append(loop)
        return loop
    return value


def rewired(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A checkpoint of which some values are exchanged, shared or endless, in each protocol of pickle."""
    generator = files.random_generator()
    protocol = chance.randrange(6)
    bomb = shared_references(chance)
    kind = chance.randrange(4)
    if kind == 0:
        module = files.nvidia_module(generator, chance.choice(("Generator", bomb)), _attributes(chance, bomb))
        networks = {chance.choice(("G", "G_ema", "any")): module, "D": bomb, "training_set_kwargs": bomb}
        _exchange(chance, [module.meta, module.meta["state"], networks], bomb)
        return files.dump(networks, protocol)
    if kind == 1:
        keys = ("resolution_h", "nonlinearity", "resample_kernel", "conv_clamp", "mapping_lrmul", "other", "dtype")
        settings = {chance.choice(keys): chance.choice((bomb, 16, "lrelu")) for _ in range(2)}
        variables = {chance.choice(("dlatent_avg", "synthesis/noise0", "new")): bomb}
        version = chance.choice((5, 4, bomb))
        return files.tensorflow_pickle(
            generator, settings=settings, version=version, extra_variables=variables, protocol=max(2, protocol)
        )
    writers = (files.rosinality_state, files.basicsr_state, files.mmgeneration_state, files.genforce_state)
    state: dict[object, object] = dict(chance.choice(writers)(generator))
    root: dict[object, object] = {chance.choice(("g_ema", "state_dict", "model")): state, "latent_avg": bomb, "x": bomb}
    _exchange(chance, [state, root], bomb)
    return pickle.dumps(root, protocol) if kind == 2 else files.torch_file(root, stream=chance.random() < 0.5)


def _attributes(chance: random.Random, bomb: object) -> dict[str, dict[str, object]]:
    names = ("", "mapping", "synthesis", "mapping.fc0", "synthesis.b8.conv0", "synthesis.b4.torgb")
    attributes = ("activation", "conv_clamp", "bias_gain", "_init_kwargs", "_modules", "_buffers", "w_dim", "c_dim")
    values = (bomb, {"mapping_kwargs": bomb, "synthesis_kwargs": {"square": bomb}}, {"unknown": bomb}, 0.5, "linear")
    return {chance.choice(names): {chance.choice(attributes): chance.choice(values)} for _ in range(2)}


def _exchange(chance: random.Random, dictionaries: list[dict[object, object]], bomb: object) -> None:
    """Values of some keys become others' values, endless ones or nothing."""
    for _ in range(chance.choice((0, 1, 3))):
        target, source = chance.choice(dictionaries), chance.choice(dictionaries)
        if target and source:
            key = chance.choice(list(target))
            target[key] = chance.choice((bomb, None, source, source[chance.choice(list(source))], np.ones(3)))


# Names whose calls this reader knows, and some that only stay names.
CONSTRUCTORS = (
    *BASIC_CONSTRUCTORS, "torch.storage._load_from_bytes", "torch_utils.persistence._reconstruct_persistent_obj",
    "a.b.torch_utils.persistence._reconstruct_persistent_obj", "dnnlib.tflib.network.Network", "__builtin__.set",
    "torch.FloatStorage", "torch.ComplexFloatStorage", "torch.device", "builtins.getattr", "pathlib.PosixPath",
)  # fmt: skip


def grown(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A program of calls of every constructor with arguments of any kind, many of them shared."""
    wrapping, program = chance.randrange(3), bytearray()
    num_values = chance.choice((5, 50, 250))
    for number in range(num_values):
        program += _grown_value(chance, number, depth=0, has_storages=wrapping > 0) + b"\x94"
        if chance.random() < 0.5:
            program += b"0"
    chosen = [chance.randrange(num_values) for _ in range(3)]
    program += b"}(X\x05\x00\x00\x00g_emah%cX\x0b\x00\x00\x00input.inputh%cX\x01\x00\x00\x00xh%cu." % tuple(chosen)
    body = b"\x80\x04" + bytes(program)
    if wrapping == 0:
        return body
    if wrapping == 1:
        with io.BytesIO() as buffer:
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("archive/data.pkl", body)
                archive.writestr("archive/data/0", bytes(16))
            return buffer.getvalue()
    head = STREAM_MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + body + pickle.dumps(["0"], 2) + (4).to_bytes(8, "little") + bytes(16)


_LEAVES = (
    b"N", b"\x88", b"K\x03", b"J\xff\xff\xff\x7f", b"G\x7f\xf0" + bytes(6), b"\x8c\x02f4", b"C\x04abcd",
    b"\x8c\x06latin1", b"\x8c\x01<", b")", b"]", b"}", b"\x8c\x07storage", b"\x8c\x010",
)  # fmt: skip
_KEYS = (b"\x8c\x05state", b"\x8c\x08_modules", b"\x8c\x0binput.input", b"\x8c\x08_buffers", b"K\x01")
_STORAGE = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x04tQ"


def _grown_value(chance: random.Random, num_remembered: int, depth: int, *, has_storages: bool) -> bytes:
    """Operations that leave one value on the stack; `num_remembered` earlier ones may be used again."""

    def more() -> bytes:
        return _grown_value(chance, num_remembered, depth + 1, has_storages=has_storages)

    if depth > 3 or chance.random() < 0.3:
        if num_remembered and chance.random() < 0.6:
            return b"h" + bytes([chance.randrange(num_remembered)])
        return _STORAGE if has_storages and chance.random() < 0.2 else chance.choice(_LEAVES)
    kind = chance.randrange(6)
    if kind == 0:
        return more() + more() + b"\x86"
    if kind == 1:
        return b"](" + more() + more() + b"e"
    if kind == 2:
        return b"}(" + chance.choice(_KEYS) + more() + chance.choice(_KEYS) + more() + b"u"
    if kind == 3:
        return more() + more() + b"b"
    module, _, name = chance.choice(CONSTRUCTORS).rpartition(".")
    called = f"c{module}\n{name}\n".encode()
    arguments = b"(" + b"".join(more() for _ in range(chance.randrange(6))) + b"t"
    return called + arguments + chance.choice((b"R", b"\x81", b"}\x92", b"R" + more() + b"b"))


def exploit(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A call that would leave a mark, somewhere in a file that is whole otherwise."""
    command = f"touch {Path(tempfile.gettempdir(), files.CANARY)}".encode()
    names = (b"cposix\nsystem\n", b"cos\nsystem\n", b"csubprocess\ngetoutput\n", b"cos\npopen\n")
    call = chance.choice(names) + b"(X" + struct.pack("<I", len(command)) + command + b"tR"
    content = chance.choice(seeds)
    if chance.random() < 0.5:
        return b"\x80\x04}(X\x05\x00\x00\x00G_ema" + call + b"X\x01\x00\x00\x00DNu."
    places = [index for index in range(2, min(len(content), 20_000)) if content[index : index + 1] in b"}N)"]
    position = chance.choice(places or [2])
    return content[:position] + call + b"0" + content[position:]


MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    (flip, 30), (overwrite, 20), (truncate, 12), (splice, 12), (shift, 10), (operations, 6), (compressed_bomb, 3),
    (object_bomb, 2), (tensor_bomb, 2), (header_bomb, 3), (reference_bomb, 1),
    (rewired, 10), (grown, 12), (exploit, 4),
)  # fmt: skip


def mutated(number: int, seed: int, seeds: list[bytes]) -> tuple[str, bytes]:
    """The name of a mutation and its file."""
    chance = random.Random(f"{seed}/{number}")
    kinds, weights = zip(*MUTATIONS, strict=True)
    kind = chance.choices(kinds, weights)[0]
    return kind.__name__, kind(chance, seeds)


def outcome(content: bytes) -> str:
    """'loaded' or 'refused'; anything else is raised."""
    try:
        loaded = parse_checkpoint("fuzzed", content, discriminator=True)
    except CheckpointError as error:
        message = str(error)
        assert message.startswith("fuzzed: "), message
        assert len(message) < 1000 and "\n" not in message, message
        return "refused"
    generator = loaded.generator
    assert all(bool(torch.isfinite(tensor).all()) for tensor in generator.state_dict().values())
    spec = generator.spec
    ws_BLD = generator.map(torch.zeros(1, spec.z_dim), torch.ones(1, spec.c_dim) if spec.c_dim else None)
    assert ws_BLD.shape == (1, spec.num_ws, spec.w_dim)
    return "loaded"


def limit_memory(headroom_mib: int) -> None:
    """Let the address space grow by so much from here, and no further."""
    status = Path("/proc/self/status").read_text()
    used_kib = int(next(line for line in status.splitlines() if line.startswith("VmSize")).split()[1])
    limit = used_kib * 1024 + headroom_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this file alone")
    parser.add_argument(
        "--headroom-mib", type=int, default=256, help="address space beyond what loading all seeds takes"
    )
    args = parser.parse_args()

    torch.set_num_threads(1)
    canary = Path(tempfile.gettempdir(), files.CANARY)
    seeds = seed_files()
    for content in seeds:
        assert outcome(content) == "loaded"
    limit_memory(args.headroom_mib)
    resident_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    faulthandler.register(signal.SIGPROF, chain=True)
    counts: Counter[str] = Counter()
    slowest, begun = 0.0, time.process_time()
    for number in range(args.count) if args.only is None else [args.only]:
        kind, content = mutated(number, args.seed, seeds)
        print(f"\rfile {number} ({kind})", end=" ", file=sys.stderr, flush=True)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        started = time.process_time()
        try:
            result = outcome(content)
        except BaseException:
            traceback.print_exc()
            print(f"file {number} ({kind}, seed {args.seed}, {len(content)} bytes): neither loaded nor refused")
            return 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - started
        if seconds > MAX_SECONDS_PER_FILE:
            print(f"file {number} ({kind}, {len(content)} bytes): {seconds:.1f} s")
            return 1
        slowest = max(slowest, seconds)
        counts[f"{kind} {result}"] += 1
    if canary.exists():
        print(f"{canary}: source text in a checkpoint was executed")
        return 1
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident_kib
    for key, value in sorted(counts.items()):
        print(f"{key:>24} {value}")
    print(
        json.dumps(
            {
                "files": sum(counts.values()),
                "loaded": sum(value for key, value in counts.items() if key.endswith("loaded")),
                "seconds": round(time.process_time() - begun, 1),
                "slowest_seconds": round(slowest, 2),
                "resident_growth_mib": round(grown_kib / 1024),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
