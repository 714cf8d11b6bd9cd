"""What one writes in Python without the library, timed for `pagedkv bench`: update and convert.

The program holds this text and runs it as `python3 -c TEXT DTYPE`, with a socket as standard
input.  A request is int64 numbers: what to do, how many numbers follow, and those.  An answer is
a line, "ok NUMBER" or "failed WHY"; the first one stands before any request and says who is here.
cli/bench_peers.c is the other side.
"""

import sys

if sys.path[0] == "":
    del sys.path[0]  # a numpy.py that lies in the working directory is not NumPy

import array
import collections
import gc
import importlib
import mmap
import os
import struct
import time

OPEN, RUN, CHECK, ASK = range(4)
NAMES = ("numpy", "torch")
# For each of them.  NumPy has no bfloat16; PyTorch's index_copy_ takes no float8.
DTYPES = {"f32": ("float32", "float32"), "f16": ("float16", "float16"),
          "bf16": ("int16", "bfloat16"), "int8": ("int8", "int8")}
BYTES = ("uint8", "uint8")
# The program's numbers of element types, for conversions.  NumPy has the last three from ml_dtypes.
CONVERTED = {1: "float32", 2: "float16", 3: "bfloat16", 4: "float8_e4m3fn", 5: "float8_e5m2"}
OF_ML_DTYPES = {3, 4, 5}
MODERATE = bytes((byte & 0x83) + 0x3c for byte in range(256))  # high bytes of moderate bf16
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2}

OTHER_BYTES = 4 << 20  # as the program's: more than the second-level cache of one core
BLOCK_BYTES = 2 * 2097143  # twice a prime, so that rows of the source differ
SETTLE_S = 0.01  # OpenMP's threads spin on for about 8 ms when they have done their work
HUGE_SHARE = 0.9  # the ends of a mapping may not fit

Task = collections.namedtuple("Task", "peer threads warm n_calls n_tokens n_planes n_slots n_heads "
                                      "row_bytes source_bytes stride_bytes src_dtype cache_dtype "
                                      "factor_bits")


# ---- the other side ----------------------------------------------------------


def receive(requests, n):
    numbers = array.array("q")
    data = requests.read(8 * n)
    if len(data) < 8 * n:
        sys.exit()  # the program is done
    numbers.frombytes(data)
    return numbers


def answer(text):
    os.write(0, (text + "\n").encode())


# ---- memory ------------------------------------------------------------------


def new_mapping(size_bytes, huge):
    mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        try:
            mapping.madvise(advice)
        except OSError:
            pass  # a system without huge pages; what it gave is asked below
    return mapping


def fill(mapping, block):
    with memoryview(mapping) as view:
        for at in range(0, len(view), len(block)):
            view[at:at + len(block)] = block[:len(view) - at]


def huge_bytes():
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
            return sum(int(line.split()[1]) * 1024 for line in lines if "AnonHugePages" in line)
    except OSError:
        return 0


class Memory:
    """The cache and the source, of the same sizes and on the same pages as the program's."""

    def __init__(self, cache_bytes, source_bytes, huge):
        self.cache = new_mapping(cache_bytes, huge)
        self.source = new_mapping(source_bytes, huge)
        fill(self.cache, bytes(BLOCK_BYTES))
        numbers = bytearray(os.urandom(BLOCK_BYTES))
        numbers[1::2] = numbers[1::2].translate(MODERATE)
        fill(self.source, numbers)
        self.is_huge = huge_bytes() >= HUGE_SHARE * (cache_bytes + source_bytes)


def places(task, slots):
    """(byte in the cache, byte in the source) of each row, by their addresses alone."""
    plane_bytes = task.n_slots * task.row_bytes
    for call in range(task.n_calls):
        source = task.source_bytes + call * task.stride_bytes
        for plane in range(task.n_planes):
            for i in range(task.n_tokens):
                slot = slots[call * task.n_tokens + i]
                yield slot, plane * plane_bytes + slot * task.row_bytes, source
                source += task.row_bytes


def wrong_slot(memory, task, slots):
    """A slot that does not hold its row, or -1."""
    with memoryview(memory.cache) as cache, memoryview(memory.source) as source:
        for slot, to, at in places(task, slots):
            if bytes(cache[to:to + task.row_bytes]) != bytes(source[at:at + task.row_bytes]):
                return slot
    return -1


# ---- the peers ---------------------------------------------------------------


def write_numpy(copies):
    start = time.perf_counter_ns()
    for cache, slots, new in copies:
        cache[slots] = new
    return time.perf_counter_ns() - start


def write_torch(copies):
    start = time.perf_counter_ns()
    for cache, slots, new in copies:
        cache.index_copy_(0, slots, new)
    return time.perf_counter_ns() - start


def convert_numpy(copies):
    start = time.perf_counter_ns()
    for cache, slots, new, factor in copies:
        if factor is not None:
            new = new * factor
        cache[slots] = new.astype(cache.dtype)
    return time.perf_counter_ns() - start


def convert_torch(copies):
    import torch
    start = time.perf_counter_ns()
    for cache, slots, new, factor in copies:
        if factor is not None:
            new = new * factor
        new = new.to(cache.dtype)
        if cache.element_size() == 1:  # index_copy_ takes no float8
            cache, new = cache.view(torch.uint8), new.view(torch.uint8)
        cache.index_copy_(0, slots, new)
    return time.perf_counter_ns() - start


class Peer:
    """One of the libraries: NumPy and PyTorch name all that is needed here alike."""

    def __init__(self, number, dtype):
        self.library = importlib.import_module(NAMES[number])
        name = DTYPES.get(dtype, BYTES)[number]
        self.dtype = getattr(self.library, name)
        self.element_bytes = ELEMENT_BYTES.get(name, 1)
        self.write = (write_numpy, write_torch)[number]
        self.convert = (convert_numpy, convert_torch)[number]
        self.number = number
        self.other = self.library.ones(OTHER_BYTES // 8, dtype=self.library.int64)

    def rows(self, mapping, offset_bytes, n, task):
        """[n, heads, elements of a head], as the cache is declared."""
        count = n * task.row_bytes // self.element_bytes
        flat = self.library.frombuffer(mapping, dtype=self.dtype, count=count, offset=offset_bytes)
        return flat.reshape(n, task.n_heads, -1)

    def copies(self, memory, task, slots):
        for call in range(task.n_calls):
            index = self.library.frombuffer(slots, dtype=self.library.int64, count=task.n_tokens,
                                            offset=8 * call * task.n_tokens)
            source = task.source_bytes + call * task.stride_bytes
            for plane in range(task.n_planes):
                cache = self.rows(memory.cache, plane * task.n_slots * task.row_bytes,
                                  task.n_slots, task)
                new = self.rows(memory.source, source + plane * task.n_tokens * task.row_bytes,
                                task.n_tokens, task)
                yield cache, index, new

    def converted(self, number):
        """An element type of conversions, or None."""
        library = self.library
        if number not in CONVERTED:
            return None
        if self.number == 0 and number in OF_ML_DTYPES:
            try:
                library = importlib.import_module("ml_dtypes")
            except Exception:
                return None
        dtype = getattr(library, CONVERTED[number], None)
        return self.library.dtype(dtype) if self.number == 0 and dtype is not None else dtype

    def elements(self, mapping, offset_bytes, n, heads, row_bytes, dtype):
        flat = self.library.frombuffer(mapping, dtype=self.library.uint8, count=n * row_bytes,
                                       offset=offset_bytes)
        return flat.view(dtype).reshape(n, heads, -1)

    def conversions(self, memory, task, slots):
        src, dst = self.converted(task.src_dtype), self.converted(task.cache_dtype)
        row_elements = task.row_bytes // dst.itemsize
        src_bytes = row_elements * src.itemsize
        index = self.library.frombuffer(slots, dtype=self.library.int64, count=task.n_tokens)
        factor = struct.unpack("f", struct.pack("I", task.factor_bits))[0]
        if self.number == 0:
            factor = self.library.float32(factor)
        for plane in range(task.n_planes):
            cache = self.elements(memory.cache, plane * task.n_slots * task.row_bytes,
                                  task.n_slots, task.n_heads, task.row_bytes, dst)
            at = task.source_bytes + plane * task.n_tokens * src_bytes
            new = self.elements(memory.source, at, task.n_tokens, task.n_heads, src_bytes, src)
            yield cache, index, new, factor if task.factor_bits else None

    def wrong_conversion(self, memory, task, slots):
        """Each row converted on its own; a slot that differs, or -1."""
        for cache, _, new, factor in self.conversions(memory, task, slots):
            for token, slot in enumerate(slots):
                one = new[token] if factor is None else new[token] * factor
                want = one.astype(cache.dtype) if self.number == 0 else one.to(cache.dtype)
                if not bool((want == cache[slot]).all()):
                    return slot
        return -1

    def warm_source(self, memory, task):
        """Writes new bytes to it, as a model that has just computed them."""
        n = task.n_calls * task.stride_bytes // 8
        words = self.library.frombuffer(memory.source, dtype=self.library.int64, count=n,
                                        offset=task.source_bytes)
        words += 0x1E3779B97F4A7C15

    def run(self, memory, task, slots):
        """Nanoseconds of all calls."""
        converts = task.src_dtype != 0
        copies = list((self.conversions if converts else self.copies)(memory, task, slots))
        if task.threads > 1:
            time.sleep(SETTLE_S)  # the program's threads
        self.other.sum()
        if task.warm:
            self.warm_source(memory, task)
        for copy in copies:
            copy[1].sum()
        ns = (self.convert if converts else self.write)(copies)
        if task.threads > 1:
            time.sleep(SETTLE_S)  # ours
        return ns


class Threads:
    """As the program's: pinned where there are several, wherever the system likes for one."""

    def __init__(self):
        self.cpus = getattr(os, "sched_getaffinity", lambda _: set())(0)
        self.threads = 0
        os.environ.setdefault("OMP_PROC_BIND", "true")

    def use(self, threads, torch):
        if threads == self.threads:
            return
        self.threads = threads
        if self.cpus:
            os.sched_setaffinity(0, self.cpus if threads == 1 else {min(self.cpus)})
        if torch is not None:
            torch.library.set_num_threads(threads)


def new_peer(number, dtype):
    try:
        return Peer(number, dtype)
    except Exception:  # half an installation, or one for another machine, is none
        return None


def serve(dtype):
    threads = Threads()
    peers = [new_peer(number, dtype) for number in range(len(NAMES))]
    memory, task, slots = None, None, None
    requests = open(0, "rb")
    gc.disable()
    answer(f"ok {sum(1 << number for number, peer in enumerate(peers) if peer is not None)}")
    while True:
        what, n = receive(requests, 2)
        numbers = receive(requests, n)
        if what == OPEN:
            memory = None  # before there is a second one
            memory = Memory(*numbers)
            result = memory.is_huge
        elif what == RUN:
            task, slots = Task(*numbers[:len(Task._fields)]), numbers[len(Task._fields):]
            threads.use(task.threads, peers[1])
            result = peers[task.peer].run(memory, task, slots)
        elif what == ASK:
            peer = peers[numbers[0]]
            result = all(peer.converted(number) is not None for number in numbers[1:])
        elif task.src_dtype != 0:
            result = peers[task.peer].wrong_conversion(memory, task, slots)
        else:
            result = wrong_slot(memory, task, slots)
        answer(f"ok {int(result)}")


try:
    serve(sys.argv[1])
except Exception as error:
    answer(f"failed {type(error).__name__}: {error}".replace("\n", " ")[:120])
