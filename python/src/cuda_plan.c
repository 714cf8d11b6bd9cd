/* Plans made by a CUDA device, of PyTorch's tensors there. */
#include "core.h"

/* What both kinds of plans have: Python's arguments, and their arrays. */
typedef struct output {
    PyObject  *slices_obj, *count_obj, *status_obj, *device_obj, *stream_obj;
    array      slices, count, status;
    pkv_slices plan;
    cuda_place place;
} output;

static bool output_open(output *o)
{
    const int32_t device = o->place.device;
    return array_open_cuda(&o->slices, o->slices_obj, "slices", device) &&
           cuda_open_word(&o->count, o->count_obj, "num_slices", device) &&
           (o->status_obj == Py_None ||
            cuda_open_word(&o->status, o->status_obj, "status_word", device)) &&
           slices_open(&o->plan, &o->slices, (int32_t *)(void *)o->count.data);
}

static int32_t *words(const array *a)
{
    return (int32_t *)(void *)a->data;
}

static bool vector_open(array *a, PyObject *obj, const char *name, const output *o)
{
    return array_open_cuda(a, obj, name, o->place.device) && array_is_vector(a, false);
}

/* query_start_loc has an entry for each request, and the end. */
static bool starts_open(array *a, PyObject *obj, const output *o)
{
    if (!vector_open(a, obj, "query_start_loc", o)) {
        return false;
    }
    if (a->shape[0] < 1) {
        raise_invalid("query_start_loc: is empty");
    }
    return a->shape[0] >= 1;
}

static PyObject *answer(pkv_status status, const pkv_error *err)
{
    if (status != PKV_OK) {
        return raise_error(err, NULL);
    }
    Py_RETURN_NONE;
}

/* ---- from a slot for every token -------------------------------------------------- */

typedef struct slots_call {
    output    out;
    PyObject *slots_obj, *tokens_obj, *starts_obj, *seqs_obj;
    array     slots, tokens, starts, seqs;
    long long page_size, n_slots, max_slice_tokens;
} slots_call;

static bool slots_open(slots_call *c)
{
    const int32_t device = c->out.place.device;
    if ((c->starts_obj == Py_None) != (c->seqs_obj == Py_None)) {
        raise_invalid("query_start_loc, num_seqs: one is given without the other");
        return false;
    }
    return array_open_cuda(&c->slots, c->slots_obj, "slot_mapping", device) &&
           array_is_vector(&c->slots, true) &&
           (c->tokens_obj == Py_None ||
            cuda_open_word(&c->tokens, c->tokens_obj, "num_tokens", device)) &&
           (c->starts_obj == Py_None ||
            (starts_open(&c->starts, c->starts_obj, &c->out) &&
             cuda_open_word(&c->seqs, c->seqs_obj, "num_seqs", device))) &&
           output_open(&c->out);
}

/* cuda_plan_slots(slots, num_tokens, query_start_loc, num_seqs, page_size, n_slots,
 *                 max_slice_tokens, slices, num_slices, status_word, device, stream) */
PyObject *core_cuda_plan_slots(PyObject *self, PyObject *args)
{
    slots_call c = {0};
    output    *o = &c.out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOLLLOOOOO", &c.slots_obj, &c.tokens_obj, &c.starts_obj,
                          &c.seqs_obj, &c.page_size, &c.n_slots, &c.max_slice_tokens,
                          &o->slices_obj, &o->count_obj, &o->status_obj, &o->device_obj,
                          &o->stream_obj) ||
        !cuda_read_place(o->device_obj, o->stream_obj, &o->place) || !slots_open(&c)) {
        return NULL;
    }
    pkv_cuda *cuda = cuda_open_device(o->place.device);
    if (cuda == NULL) {
        return NULL;
    }
    const pkv_cuda_slots slots = {
        .struct_size = sizeof slots, .slots = c.slots.data,
        .slot_bits = array_is_int64(&c.slots) ? 64 : 32, .n_tokens = c.slots.shape[0],
        .num_tokens = words(&c.tokens), .query_start_loc = words(&c.starts),
        .num_seqs = words(&c.seqs),
        .max_num_reqs = c.starts_obj == Py_None ? 0 : c.starts.shape[0] - 1,
        .page_size = c.page_size, .n_slots = c.n_slots};
    pkv_error err;
    return answer(pkv_cuda_plan_slots(cuda, &slots, c.max_slice_tokens, &o->plan,
                                      words(&o->status), &err, o->place.stream), &err);
}

/* ---- from requests and their pages ------------------------------------------------- */

typedef struct pages_call {
    output    out;
    PyObject *lens_obj, *starts_obj, *table_obj, *seqs_obj;
    array     lens, starts, table, seqs;
    long long page_size, n_pages, max_slice_tokens;
} pages_call;

static bool table_is_right(const array *table, int64_t max_num_reqs)
{
    if (!array_is_int32(table) || table->n_dims != 2 || table->shape[0] != max_num_reqs) {
        raise_invalid("block_table: is not int32 of a row for each of context_lens");
        return false;
    }
    if ((table->shape[1] > 1 && table->stride_bytes[1] != table->item_bytes) ||
        table->stride_bytes[0] < 0) {
        raise_invalid("block_table: its rows are not contiguous");
        return false;
    }
    return true;
}

static bool pages_open(pages_call *c)
{
    const int32_t device = c->out.place.device;
    if (!vector_open(&c->lens, c->lens_obj, "context_lens", &c->out) ||
        !starts_open(&c->starts, c->starts_obj, &c->out) ||
        !array_open_cuda(&c->table, c->table_obj, "block_table", device) ||
        !table_is_right(&c->table, c->lens.shape[0]) ||
        !cuda_open_word(&c->seqs, c->seqs_obj, "num_seqs", device) || !output_open(&c->out)) {
        return false;
    }
    if (c->starts.shape[0] != c->lens.shape[0] + 1) {
        raise_invalid("query_start_loc: has %lld entries, not one more than context_lens",
                      (long long)c->starts.shape[0]);
        return false;
    }
    return true;
}

/* cuda_plan(context_lens, query_start_loc, block_table, num_seqs, page_size, n_pages,
 *           max_slice_tokens, slices, num_slices, status_word, device, stream) */
PyObject *core_cuda_plan(PyObject *self, PyObject *args)
{
    pages_call c = {0};
    output    *o = &c.out;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOLLLOOOOO", &c.lens_obj, &c.starts_obj, &c.table_obj,
                          &c.seqs_obj, &c.page_size, &c.n_pages, &c.max_slice_tokens,
                          &o->slices_obj, &o->count_obj, &o->status_obj, &o->device_obj,
                          &o->stream_obj) ||
        !cuda_read_place(o->device_obj, o->stream_obj, &o->place) || !pages_open(&c)) {
        return NULL;
    }
    pkv_cuda *cuda = cuda_open_device(o->place.device);
    if (cuda == NULL) {
        return NULL;
    }
    const int64_t width = c.table.shape[1];
    const pkv_cuda_batch batch = {
        .struct_size = sizeof batch, .num_seqs = words(&c.seqs), .max_num_reqs = c.lens.shape[0],
        .context_lens = words(&c.lens), .query_start_loc = words(&c.starts),
        .block_table = words(&c.table),
        .block_table_stride = c.table.shape[0] > 1 ? c.table.stride_bytes[0] / c.table.item_bytes
                                                   : width,
        .block_table_width = width, .page_size = c.page_size, .n_pages = c.n_pages};
    pkv_error err;
    return answer(pkv_cuda_plan(cuda, &batch, c.max_slice_tokens, &o->plan, words(&o->status),
                                &err, o->place.stream), &err);
}
