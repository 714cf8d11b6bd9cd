"""python/src/xla_abi.h against jaxlib's own header, and the handler called as XLA would call it.

The second part sees what JAX cannot show: after a refusal the donated buffer is gone, so only a
caller of the handler itself can look whether anything was written there.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from pagedkv import _core

import model
from model import check_same

ABI = Path(__file__).resolve().parents[2] / "python" / "src" / "xla_abi.h"

# Ours -> XLA's, with ours -> theirs for each field that is used, in the order of the struct.
STRUCTS = {
    "xla_extension": ("XLA_FFI_Extension_Base", {
        "struct_size": "struct_size", "type": "type", "next": "next"}),
    "xla_version": ("XLA_FFI_Api_Version", {
        "struct_size": "struct_size", "extensions": "extension_start",
        "major_version": "major_version", "minor_version": "minor_version"}),
    "xla_metadata": ("XLA_FFI_Metadata", {
        "struct_size": "struct_size", "api_version": "api_version", "traits": "traits"}),
    "xla_metadata_extension": ("XLA_FFI_Metadata_Extension", {
        "base": "extension_base", "metadata": "metadata"}),
    "xla_error_create_args": ("XLA_FFI_Error_Create_Args", {
        "struct_size": "struct_size", "extensions": "extension_start", "message": "message",
        "code": "errc"}),
    "xla_stream_args": ("XLA_FFI_Stream_Get_Args", {
        "struct_size": "struct_size", "extensions": "extension_start", "ctx": "ctx",
        "stream": "stream"}),
    "xla_device_args": ("XLA_FFI_DeviceOrdinal_Get_Args", {
        "struct_size": "struct_size", "extensions": "extension_start", "ctx": "ctx",
        "device": "device_ordinal"}),
    "xla_api": ("XLA_FFI_Api", {
        "struct_size": "struct_size", "extensions": "extension_start",
        "api_version": "api_version", "internal_api": "internal_api",
        "error_create": "XLA_FFI_Error_Create", "stream_get": "XLA_FFI_Stream_Get",
        "device_get": "XLA_FFI_DeviceOrdinal_Get"}),
    "xla_buffer": ("XLA_FFI_Buffer", {
        "struct_size": "struct_size", "extensions": "extension_start", "dtype": "dtype",
        "data": "data", "rank": "rank", "dims": "dims"}),
    "xla_call_frame": ("XLA_FFI_CallFrame", {
        "struct_size": "struct_size", "extensions": "extension_start", "api": "api",
        "ctx": "ctx", "stage": "stage", "args": "args", "rets": "rets"}),
}
VALUES = {"struct_size": "struct_size", "extensions": "extension_start", "size": "size",
          "types": "types"}

# Structs that end where XLA's end; of the others only the beginning is used.
WHOLE = {"xla_extension", "xla_version", "xla_metadata_extension", "xla_error_create_args",
         "xla_buffer", "xla_stream_args", "xla_device_args"}

ENUMS = {
    "XLA_EXTENSION_METADATA": "XLA_FFI_Extension_Metadata",
    "XLA_STAGE_INITIALIZE": "XLA_FFI_ExecutionStage_INITIALIZE",
    "XLA_STAGE_EXECUTE": "XLA_FFI_ExecutionStage_EXECUTE",
    "XLA_TRAIT_COMMAND_BUFFER": "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE",
    **{f"XLA_{name}": f"XLA_FFI_Error_Code_{name}" for name in (
        "INVALID_ARGUMENT", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL")},
    **{f"XLA_{name}": f"XLA_FFI_DataType_{name}" for name in (
        "PRED", "S8", "S16", "S32", "S64", "U8", "U16", "U32", "U64", "F16", "F32", "F64", "C64",
        "BF16", "F8E5M2", "F8E4M3FN", "F8E4M3B11FNUZ", "F8E5M2FNUZ", "F8E4M3FNUZ", "F8E4M3",
        "F8E3M4", "F8E8M0FNU")},
}


def assertions() -> str:
    lines = ["#include <stddef.h>", "#include <stdint.h>", '#include "xla/ffi/api/c_api.h"',
             f'#include "{ABI}"', "#define SIZE(s, f) sizeof(((s *)0)->f)"]
    structs = [(*item, fields) for item, fields in
               (((ours, theirs), fields) for ours, (theirs, fields) in STRUCTS.items())]
    structs += [("xla_values", "XLA_FFI_Args", VALUES | {"values": "args"}),
                ("xla_values", "XLA_FFI_Rets", VALUES | {"values": "rets"})]
    for ours, theirs, fields in structs:
        for a, b in fields.items():
            lines += [
                f'_Static_assert(offsetof({ours}, {a}) == offsetof({theirs}, {b}), "{ours}.{a}");',
                f'_Static_assert(SIZE({ours}, {a}) == SIZE({theirs}, {b}), "size of {ours}.{a}");']
        equal = "==" if ours in WHOLE or ours == "xla_values" else "<="
        lines.append(f'_Static_assert(sizeof({ours}) {equal} sizeof({theirs}), "{ours}");')
    lines += [f'_Static_assert((int){a} == (int){b}, "{a}");' for a, b in ENUMS.items()]
    lines += ['_Static_assert(XLA_API_MAJOR == XLA_FFI_API_MAJOR, "major version");',
              '_Static_assert(XLA_API_MINOR <= XLA_FFI_API_MINOR, "minor version");']
    return "\n".join(lines) + "\n"


def compile_c(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    source = folder / "abi.c"
    source.write_text(text)
    return subprocess.run(
        ["cc", "-std=c11", "-Wall", "-Werror", f"-I{jax.ffi.include_dir()}", *options, str(source)],
        cwd=folder, capture_output=True, text=True, check=False)


def test_structs_and_values_are_those_of_jaxlib(tmp_path: Path) -> None:
    run = compile_c(tmp_path, assertions(), "-fsyntax-only")
    assert run.returncode == 0, run.stderr
    # And the check can fail: shift one field, change one value.
    for old, new in (("offsetof(xla_buffer, rank)", "1 + offsetof(xla_buffer, rank)"),
                     ("(int)XLA_BF16 ==", "1 + (int)XLA_BF16 ==")):
        text = assertions()
        assert old in text
        assert compile_c(tmp_path, text.replace(old, new), "-fsyntax-only").returncode != 0


def test_nothing_of_the_header_is_left_out() -> None:
    """Each struct and each value that xla_abi.h has is compared above."""
    text = ABI.read_text()
    code = text[text.index("#define"):]
    words = set(code.replace(",", " ").replace("{", " ").split())
    values = {w for w in words if w.startswith("XLA_")}
    assert values - set(ENUMS) == {"XLA_API_MAJOR", "XLA_API_MINOR"}
    names = {line.split()[2] for line in code.splitlines() if line.startswith("typedef struct")}
    assert names == {*STRUCTS, "xla_values", "xla_error"}  # xla_error has no inside


# ---- the handler ---------------------------------------------------------------------------

DRIVER = """
#include <string.h>
#include "xla/ffi/api/c_api.h"

typedef struct spec { int dtype; void *data; int64_t rank; int64_t dims[4]; } spec;

static char text[512];
static int  code;

/* Of the execution: set by the tests. */
int    drive_device;
void  *drive_stream;
size_t drive_api_bytes = XLA_FFI_Api_STRUCT_SIZE;

static XLA_FFI_Error *create(XLA_FFI_Error_Create_Args *args)
{
    strncpy(text, args->message, sizeof text - 1);
    code = (int)args->errc;
    return (XLA_FFI_Error *)text;
}

static XLA_FFI_Error *get_stream(XLA_FFI_Stream_Get_Args *args)
{
    args->stream = drive_stream;
    return NULL;
}

static XLA_FFI_Error *get_device(XLA_FFI_DeviceOrdinal_Get_Args *args)
{
    args->device_ordinal = drive_device;
    return NULL;
}

static void fill(XLA_FFI_Buffer *b, void **at, const spec *s)
{
    *b = (XLA_FFI_Buffer){XLA_FFI_Buffer_STRUCT_SIZE, 0, (XLA_FFI_DataType)s->dtype, s->data,
                          s->rank, (int64_t *)s->dims};
    *at = b;
}

/* Calls a handler as XLA does; the code of its error, 0 for none; *message is the text. */
int drive(XLA_FFI_Handler *handler, int stage, int n_args, const spec *args, int n_rets,
          const spec *rets, const char **message)
{
    XLA_FFI_Api api = {.struct_size = drive_api_bytes, .XLA_FFI_Error_Create = create,
                       .XLA_FFI_Stream_Get = get_stream, .XLA_FFI_DeviceOrdinal_Get = get_device};
    XLA_FFI_Buffer  in[8], out[8];
    void           *ins[8], *outs[8];
    XLA_FFI_ArgType in_types[8];
    XLA_FFI_RetType out_types[8];
    for (int i = 0; i < n_args; i++) {
        fill(&in[i], &ins[i], &args[i]);
        in_types[i] = XLA_FFI_ArgType_BUFFER;
    }
    for (int i = 0; i < n_rets; i++) {
        fill(&out[i], &outs[i], &rets[i]);
        out_types[i] = XLA_FFI_RetType_BUFFER;
    }
    XLA_FFI_CallFrame frame = {
        .struct_size = XLA_FFI_CallFrame_STRUCT_SIZE, .api = &api,
        .stage = (XLA_FFI_ExecutionStage)stage,
        .args = {XLA_FFI_Args_STRUCT_SIZE, 0, n_args, in_types, ins},
        .rets = {XLA_FFI_Rets_STRUCT_SIZE, 0, n_rets, out_types, outs}};
    memset(text, 0, sizeof text);
    XLA_FFI_Error *error = handler(&frame);
    *message = text;
    return error == NULL ? 0 : code;
}

/* What it answers when it is registered. */
int ask(XLA_FFI_Handler *handler, int *major, int *minor, unsigned *traits)
{
    XLA_FFI_Metadata metadata = {.struct_size = XLA_FFI_Metadata_STRUCT_SIZE,
        .api_version = {.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE, .major_version = -1,
                        .minor_version = -1}, .traits = 99};
    XLA_FFI_Metadata_Extension extension = {
        .extension_base = {XLA_FFI_Metadata_Extension_STRUCT_SIZE, XLA_FFI_Extension_Metadata, 0},
        .metadata = &metadata};
    XLA_FFI_CallFrame frame = {.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE,
                               .extension_start = &extension.extension_base};
    XLA_FFI_Error *error = handler(&frame);
    *major = metadata.api_version.major_version;
    *minor = metadata.api_version.minor_version;
    *traits = metadata.traits;
    return error == NULL ? 0 : 1;
}
"""

INVALID_ARGUMENT, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL = 3, 11, 12, 13
EXECUTE = 3
S32, F32, BF16, S4, C128 = 4, 11, 16, 21, 18


class Spec(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("data", ctypes.c_void_p), ("rank", ctypes.c_int64),
                ("dims", ctypes.c_int64 * 4)]


def spec(array: Any, dtype: int, shape: tuple[int, ...] | None = None) -> Spec:
    shape = array.shape if shape is None else shape
    return Spec(dtype, array.ctypes.data, len(shape), (ctypes.c_int64 * 4)(*shape))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("xla")
    run = compile_c(folder, DRIVER, "-shared", "-fPIC", "-o", "driver.so")
    assert run.returncode == 0, run.stderr
    return ctypes.CDLL(str(folder / "driver.so"))


def handler(capsule: object = None) -> ctypes.c_void_p:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p(get(capsule or _core.xla_handler(), b"xla._CUSTOM_CALL_TARGET"))


SLOTS, TOKENS, HEADS, DIM = 32, 6, 2, 4


class Call:
    """The four arguments and the result of a call that is right."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.new_kv = rng.integers(0, 256, (TOKENS, HEADS, DIM * 4), np.uint8)
        self.cache = rng.integers(0, 256, (SLOTS, HEADS, DIM * 4), np.uint8)
        self.slices = np.array([[3, 20, -1], [0, 2, -1], [2, 4, -1]], np.int32)
        self.count = np.array([2], np.int32)
        self.args = [spec(self.new_kv, F32, (TOKENS, HEADS, DIM)), spec(self.slices, S32),
                     spec(self.cache, F32, (SLOTS, HEADS, DIM)), spec(self.count, S32)]
        self.rets = [spec(self.cache, F32, (SLOTS, HEADS, DIM))]
        self.stage = EXECUTE

    def run(self, driver: Any, capsule: object = None) -> tuple[int, str]:
        message = ctypes.c_char_p()
        code = driver.drive(
            handler(capsule), self.stage, len(self.args), (Spec * 8)(*self.args), len(self.rets),
            (Spec * 8)(*self.rets), ctypes.byref(message))
        return code, (message.value or b"").decode()


def test_it_answers_what_it_was_built_for(driver: Any) -> None:
    major, minor, traits = ctypes.c_int(), ctypes.c_int(), ctypes.c_uint()
    assert driver.ask(handler(), *map(ctypes.byref, (major, minor, traits))) == 0
    assert (major.value, minor.value, traits.value) == (0, 1, 0)
    cuda = handler(_core.xla_handler_cuda())
    assert driver.ask(cuda, *map(ctypes.byref, (major, minor, traits))) == 0
    assert (major.value, minor.value, traits.value) == (0, 1, 1)  # a command buffer may hold it


def test_it_writes(driver: Any) -> None:
    for n in range(3):
        call = Call()
        call.count[0] = n
        want = call.cache.copy()
        model.update(call.new_kv, model.columns(call.slices, n), want)
        assert call.run(driver) == (0, "")
        check_same(call.cache, want, n=n)


def test_a_count_of_no_dimension(driver: Any) -> None:
    call = Call()
    call.args[3].rank = 0
    assert call.run(driver)[0] == 0


def set_dims(index: int, **dims: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        for name, value in dims.items():
            call.args[index].dims[int(name[1:])] = value

    return change


def set_field(index: int, **fields: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        for name, value in fields.items():
            setattr(call.args[index], name, value)

    return change


def set_slice(row: int, column: int, value: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call.slices[row, column] = value

    return change


def set_count(value: int) -> Callable[[Call], None]:
    def change(call: Call) -> None:
        call.count[0] = value

    return change


def sub_byte(call: Call) -> None:
    call.args[0].dtype = call.args[2].dtype = call.rets[0].dtype = S4


def elsewhere(call: Call) -> None:
    call.other = call.cache.copy()  # type: ignore[attr-defined]
    call.rets[0] = spec(call.other, F32, (SLOTS, HEADS, DIM))  # type: ignore[attr-defined]


REFUSALS: dict[str, tuple[Callable[[Call], None], int, str]] = {
    "count over N": (set_count(4), OUT_OF_RANGE, "num_kv_update_slices=4 is not within 0..3"),
    "count below 0": (set_count(-1), OUT_OF_RANGE, "num_kv_update_slices=-1"),
    "garbage is real": (set_count(3), OUT_OF_RANGE, "slice 2"),
    "kv_cache_start": (set_slice(0, 1, -1), OUT_OF_RANGE, "slice 1"),
    "kv_cache_end": (set_slice(0, 1, 29), OUT_OF_RANGE, "slice 1"),
    "new_kv_end": (set_slice(1, 1, 3), OUT_OF_RANGE, "slice 1"),
    "length": (set_slice(2, 0, -2), OUT_OF_RANGE, "slice 0"),
    "rank of new_kv": (set_field(0, rank=2), INVALID_ARGUMENT, "new_kv"),
    "rank of kv_cache": (set_field(2, rank=4), INVALID_ARGUMENT, "kv_cache"),
    "dtype": (set_field(0, dtype=BF16), INVALID_ARGUMENT, "dtype"),
    "heads": (set_dims(0, d1=1), INVALID_ARGUMENT, "heads"),
    "head_dim": (set_dims(0, d2=3), INVALID_ARGUMENT, "head_dim"),
    "dtype of slices": (set_field(1, dtype=F32), INVALID_ARGUMENT, "slices"),
    "rank of slices": (set_field(1, rank=1), INVALID_ARGUMENT, "slices"),
    "rows of slices": (set_dims(1, d0=2), INVALID_ARGUMENT, "slices"),
    "dtype of the count": (set_field(3, dtype=F32), INVALID_ARGUMENT, "num_kv_update_slices"),
    "size of the count": (set_dims(3, d0=2), INVALID_ARGUMENT, "num_kv_update_slices"),
    "result elsewhere": (elsewhere, INVALID_ARGUMENT, "kv_cache"),
    "items below a byte": (sub_byte, UNIMPLEMENTED, "no whole bytes"),
    "three arguments": (lambda call: call.args.pop() and None, INTERNAL, "not the call"),
    "no result": (lambda call: call.rets.clear(), INTERNAL, "not the call"),
    "another stage": (lambda call: setattr(call, "stage", 1), INTERNAL, "not the call"),
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_refusals_write_nothing(driver: Any, name: str) -> None:
    change, code, words = REFUSALS[name]
    call = Call()
    before = call.cache.copy()
    change(call)
    got, message = call.run(driver)
    assert got == code and words in message, (got, message)
    check_same(call.cache, before, name=name)


def test_nothing_to_do(driver: Any) -> None:
    """Empty operands have no memory to point to."""
    for change in (set_dims(0, d0=0), set_dims(1, d1=0)):
        call = Call()
        call.count[0] = 0
        before = call.cache.copy()
        change(call)
        for buffer in call.args[:2]:
            if 0 in buffer.dims[:buffer.rank]:
                buffer.data = None
        assert call.run(driver) == (0, "")
        check_same(call.cache, before)
