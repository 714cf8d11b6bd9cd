/*
 * kv_cache_update as a custom call of XLA on CPUs: the count and the slices are
 * read when the call runs, so one compiled program serves every count.
 */
#include <stdio.h>

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

static bool answer_metadata(const xla_call_frame *f)
{
    if (f->extensions == NULL || f->extensions->type != XLA_EXTENSION_METADATA) {
        return false;
    }
    xla_metadata *m = ((xla_metadata_extension *)(void *)f->extensions)->metadata;
    /* The oldest interface whose layout is used: a newer XLA accepts it too. */
    m->api_version.major_version = XLA_API_MAJOR;
    m->api_version.minor_version = XLA_API_MINOR;
    m->traits = 0;
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

static pkv_status update(const xla_buffer *const *in, pkv_dtype dtype, int64_t items,
                         pkv_error *err)
{
    const int64_t *rows = in[ARG_NEW_KV]->dims, *slots = in[ARG_CACHE]->dims;
    const int64_t  bytes = pkv_dtype_bits(dtype) / 8;
    const int64_t  head_bytes = items * bytes, token_bytes = rows[1] * head_bytes;
    if (rows[1] == 0 || items == 0 || slots[0] == 0) {
        return PKV_OK; /* there is nothing to write into */
    }
    /* Slots are dense: pages of one say all there is to say. */
    pkv_cache cache = {.struct_size = sizeof cache, .n_pages = slots[0], .page_size = 1,
                       .n_heads = slots[1], .dtype = dtype,
                       .k = {in[ARG_CACHE]->data, token_bytes, token_bytes, head_bytes, items}};
    pkv_new_kv source = {.struct_size = sizeof source, .n_tokens = rows[0], .n_heads = rows[1],
                         .dtype = dtype,
                         .k = {in[ARG_NEW_KV]->data, token_bytes, head_bytes, items}};
    pkv_slices plan;
    pkv_status status = pkv_slices_from_array(&plan, sizeof plan, in[ARG_SLICES]->data,
                                              in[ARG_SLICES]->dims[1], in[ARG_COUNT]->data);
    if (status != PKV_OK) {
        *err = (pkv_error){.code = status, .index = -1, .layer = -1, .what = "slices is empty"};
        return status;
    }
    pkv_update_opts opts = core_opts(0, rows[0] * token_bytes);
    return pkv_update(&cache, &source, &plan, &opts, err);
}

static xla_error *handler(xla_call_frame *f)
{
    if (answer_metadata(f)) {
        return NULL;
    }
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
    pkv_error err;
    if (update(in, dtype, items, &err) != PKV_OK) {
        char line[256];
        pkv_error_format(&err, line, sizeof line);
        if (err.rule == PKV_RULE_COUNT) {
            snprintf(line, sizeof line, "num_kv_update_slices=%lld is not within 0..%lld",
                     (long long)err.value, (long long)err.limit);
        }
        return fail(f, err.code == PKV_E_RANGE ? XLA_OUT_OF_RANGE : XLA_INVALID_ARGUMENT, line);
    }
    return NULL;
}

/* xla_handler() -> the capsule that jax.ffi.register_ffi_target() takes */
PyObject *core_xla_handler(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    /* An object pointer to a function: what the interface asks for, and POSIX allows. */
    union {
        xla_error *(*function)(xla_call_frame *);
        void *pointer;
    } both = {.function = handler};
    return PyCapsule_New(both.pointer, "xla._CUSTOM_CALL_TARGET", NULL);
}
