/*
 * kv_cache_update as a custom call of XLA on CPUs and CUDA devices: the count and the
 * slices are read when the call runs, on a device by the kernel, so one compiled program,
 * or one recorded graph, serves every count.
 */
#include "core.h"
#include "xla_abi.h"

#include <stdio.h>

enum { ARG_NEW_KV, ARG_SLICES, ARG_CACHE, ARG_COUNT, N_ARGS };

static xla_error *fail(const xla_call_frame *f, int code, const char *message)
{
    char line[320];
    snprintf(line, sizeof line, "pagedkv.kv_cache_update: %s", message);
    xla_error_create_args args = {.struct_size = sizeof args, .message = line, .code = code};
    return f->api->error_create(&args);
}

static bool answer_metadata(const xla_call_frame *f, uint32_t traits)
{
    if (f->extensions == NULL || f->extensions->type != XLA_EXTENSION_METADATA) {
        return false;
    }
    xla_metadata *m = ((xla_metadata_extension *)(void *)f->extensions)->metadata;
    /* The oldest interface whose layout is used: a newer XLA accepts it too. */
    m->api_version.major_version = XLA_API_MAJOR;
    m->api_version.minor_version = XLA_API_MINOR;
    m->traits = traits;
    return true;
}

static pkv_dtype opaque_dtype(int dtype, int64_t *items)
{
    switch (dtype) {
    case XLA_PRED: case XLA_S8: case XLA_U8: case XLA_F8E5M2: case XLA_F8E4M3FN:
    case XLA_F8E4M3B11FNUZ: case XLA_F8E5M2FNUZ: case XLA_F8E4M3FNUZ: case XLA_F8E4M3:
    case XLA_F8E3M4: case XLA_F8E8M0FNU: return PKV_DTYPE_BITS8;
    case XLA_S16: case XLA_U16: case XLA_F16: case XLA_BF16: return PKV_DTYPE_BITS16;
    case XLA_S32: case XLA_U32: case XLA_F32: return PKV_DTYPE_BITS32;
    case XLA_S64: case XLA_U64: case XLA_F64: case XLA_C64: *items *= 2; return PKV_DTYPE_BITS32;
    default: return 0;
    }
}

/* XLA checks nothing of this: the shapes are whatever the program says. */
static const char *check(const xla_buffer *new_kv, const xla_buffer *slices,
                         const xla_buffer *cache, const xla_buffer *count, const xla_buffer *out)
{
    if (new_kv->rank != 3 || cache->rank != 3) {
        return "new_kv or kv_cache has not 3 dimensions";
    }
    if (new_kv->dtype != cache->dtype || new_kv->dims[1] != cache->dims[1] ||
        new_kv->dims[2] != cache->dims[2]) {
        return "new_kv and kv_cache differ in dtype, heads or head_dim";
    }
    if (slices->dtype != XLA_S32 || slices->rank != 2 || slices->dims[0] != 3) {
        return "slices is not int32 [3, N]";
    }
    if (count->dtype != XLA_S32 || count->rank > 1 || (count->rank == 1 && count->dims[0] != 1)) {
        return "num_kv_update_slices is not int32 [1]";
    }
    return out->data == cache->data ? NULL : "kv_cache is not the buffer of the result";
}

/* One call, in the library's words. */
typedef struct update {
    pkv_cache  cache;
    pkv_new_kv source;
    pkv_slices plan;
    bool       empty; /* there is nothing to write into */
} update;

static pkv_status fill(update *u, const xla_buffer *const *in, pkv_dtype dtype, int64_t items)
{
    const int64_t *rows = in[ARG_NEW_KV]->dims, *slots = in[ARG_CACHE]->dims;
    const int64_t  bytes = pkv_dtype_bits(dtype) / 8;
    const int64_t  head_bytes = items * bytes, token_bytes = rows[1] * head_bytes;
    /* Slots are dense: pages of one say all there is to say. */
    *u = (update){
        .cache = {.struct_size = sizeof u->cache, .n_pages = slots[0], .page_size = 1,
                  .n_heads = slots[1], .dtype = dtype,
                  .k = {in[ARG_CACHE]->data, token_bytes, token_bytes, head_bytes, items}},
        .source = {.struct_size = sizeof u->source, .n_tokens = rows[0], .n_heads = rows[1],
                   .dtype = dtype,
                   .k = {in[ARG_NEW_KV]->data, token_bytes, head_bytes, items}},
        .empty = rows[1] == 0 || items == 0 || slots[0] == 0};
    return u->empty ? PKV_OK
                    : pkv_slices_from_array(&u->plan, sizeof u->plan, in[ARG_SLICES]->data,
                                            in[ARG_SLICES]->dims[1], in[ARG_COUNT]->data);
}

/* NULL: *u is filled. */
static xla_error *take(const xla_call_frame *f, update *u)
{
    if (f->stage != XLA_STAGE_EXECUTE || f->args.size != N_ARGS || f->rets.size != 1) {
        return fail(f, XLA_INTERNAL, "not the call that was registered");
    }
    const xla_buffer *const *in = (const xla_buffer *const *)(void *)f->args.values;
    const char *wrong = check(in[ARG_NEW_KV], in[ARG_SLICES], in[ARG_CACHE], in[ARG_COUNT],
                              f->rets.values[0]);
    if (wrong != NULL) {
        return fail(f, XLA_INVALID_ARGUMENT, wrong);
    }
    int64_t   items = in[ARG_CACHE]->dims[2];
    pkv_dtype dtype = opaque_dtype(in[ARG_CACHE]->dtype, &items);
    if (dtype == 0) {
        return fail(f, XLA_UNIMPLEMENTED, "items of this dtype are no whole bytes");
    }
    return fill(u, in, dtype, items) == PKV_OK
               ? NULL
               : fail(f, XLA_INVALID_ARGUMENT, "slices is empty");
}

static xla_error *refuse(const xla_call_frame *f, const pkv_error *err)
{
    char line[256];
    pkv_error_format(err, line, sizeof line);
    if (err->rule == PKV_RULE_COUNT) {
        snprintf(line, sizeof line, "num_kv_update_slices=%lld is not within 0..%lld",
                 (long long)err->value, (long long)err->limit);
    }
    switch (err->code) {
    case PKV_E_RANGE: return fail(f, XLA_OUT_OF_RANGE, line);
    case PKV_E_UNSUPPORTED: return fail(f, XLA_UNIMPLEMENTED, line);
    case PKV_E_DEVICE: return fail(f, XLA_INTERNAL, line);
    default: return fail(f, XLA_INVALID_ARGUMENT, line);
    }
}

static xla_error *handler(xla_call_frame *f)
{
    if (answer_metadata(f, 0)) {
        return NULL;
    }
    update     u;
    xla_error *error = take(f, &u);
    if (error != NULL || u.empty) {
        return error;
    }
    pkv_error       err;
    pkv_update_opts opts = core_opts(0, u.source.n_tokens * u.source.k.token_stride_bytes);
    return pkv_update(&u.cache, &u.source, &u.plan, &opts, &err) == PKV_OK ? NULL
                                                                           : refuse(f, &err);
}

/* ---- CUDA ---------------------------------------------------------------------------- */

/* Opens the device of this execution, or finds it opened. */
static xla_error *open_device(const xla_call_frame *f, pkv_cuda **out)
{
    const xla_api *api = f->api;
    if (api->struct_size < offsetof(xla_api, device_get) + sizeof api->device_get ||
        api->device_get == NULL) {
        return fail(f, XLA_UNIMPLEMENTED, "this XLA does not say which device it runs on");
    }
    xla_device_args args = {.struct_size = sizeof args, .ctx = f->ctx};
    xla_error      *error = api->device_get(&args);
    pkv_error       err;
    if (error != NULL) {
        return error;
    }
    return cuda_handle(args.device, out, &err) == PKV_OK ? NULL : refuse(f, &err);
}

/*
 * At XLA's initialize stage the device is opened, since loading code cannot be captured; at
 * the execute stage the kernel is put on the stream, which may be under capture.
 */
static xla_error *handler_cuda(xla_call_frame *f)
{
    if (answer_metadata(f, XLA_TRAIT_COMMAND_BUFFER)) {
        return NULL;
    }
    update     u;
    pkv_cuda  *cuda = NULL;
    pkv_error  err;
    if (f->stage == XLA_STAGE_INITIALIZE) {
        return open_device(f, &cuda);
    }
    xla_error *error = take(f, &u);
    if (error != NULL || u.empty) {
        return error;
    }
    xla_stream_args args = {.struct_size = sizeof args, .ctx = f->ctx};
    error = f->api->stream_get(&args);
    if (error == NULL) {
        error = open_device(f, &cuda);
    }
    if (error != NULL) {
        return error;
    }
    pkv_update_opts opts = {.struct_size = sizeof opts};
    return pkv_cuda_update(cuda, &u.cache, &u.source, &u.plan, &opts, &err, args.stream) == PKV_OK
               ? NULL
               : refuse(f, &err);
}

/* The capsule that jax.ffi.register_ffi_target() takes. */
static PyObject *capsule(xla_error *(*function)(xla_call_frame *))
{
    /* An object pointer to a function: what the interface asks for, and POSIX allows. */
    union {
        xla_error *(*function)(xla_call_frame *);
        void *pointer;
    } both = {.function = function};
    return PyCapsule_New(both.pointer, "xla._CUSTOM_CALL_TARGET", NULL);
}

/* xla_handler() -> capsule */
PyObject *core_xla_handler(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return capsule(handler);
}

/* xla_handler_cuda() -> capsule, for the stages initialize and execute */
PyObject *core_xla_handler_cuda(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return capsule(handler_cuda);
}
