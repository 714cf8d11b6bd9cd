/* Plans: the arrays that NumPy made, checked and handed to the planner. */
#include "core.h"

/* What a plan reads and writes; names[] are the arguments, in the order of open_batch(). */
typedef struct plan_arrays {
    array      computed, scheduled, table, indptr, indices, out;
    pkv_batch  batch;
    pkv_slices slices;
    int32_t    n;
} plan_arrays;

static void close_plan(plan_arrays *p)
{
    array_close(&p->computed);
    array_close(&p->scheduled);
    array_close(&p->table);
    array_close(&p->indptr);
    array_close(&p->indices);
    array_close(&p->out);
}

static bool open_vector(array *a, PyObject *obj, const char *name)
{
    return array_open(a, obj, name, false) && array_is_vector(a, false);
}

static bool open_counts(plan_arrays *p, PyObject *computed, PyObject *scheduled)
{
    if (!open_vector(&p->computed, computed, "computed") ||
        !open_vector(&p->scheduled, scheduled, "scheduled")) {
        return false;
    }
    if (p->computed.shape[0] != p->scheduled.shape[0]) {
        raise_invalid("scheduled: has %lld requests, but computed %lld",
                      (long long)p->scheduled.shape[0], (long long)p->computed.shape[0]);
        return false;
    }
    p->batch.struct_size = sizeof p->batch;
    p->batch.n_requests = p->computed.shape[0];
    p->batch.computed = (const int32_t *)(void *)p->computed.data;
    p->batch.scheduled = (const int32_t *)(void *)p->scheduled.data;
    return true;
}

static bool open_table(plan_arrays *p, PyObject *table)
{
    array *a = &p->table;
    if (!array_open(a, table, "block_table", false)) {
        return false;
    }
    if (!array_is_int32(a) || a->n_dims != 2) {
        raise_invalid("block_table: is no int32 array of shape [requests, pages]");
        return false;
    }
    if (a->shape[0] != p->batch.n_requests) {
        raise_invalid("block_table: has %lld rows for %lld requests", (long long)a->shape[0],
                      (long long)p->batch.n_requests);
        return false;
    }
    bool one_row = a->shape[0] < 2;
    if ((a->shape[0] > 0 && a->shape[1] > 1 && a->stride_bytes[1] != a->item_bytes) ||
        (!one_row && (a->stride_bytes[0] < 0 || a->stride_bytes[0] % a->item_bytes != 0))) {
        raise_invalid("block_table: its rows are not contiguous");
        return false;
    }
    p->batch.block_table = (const int32_t *)(void *)a->data;
    p->batch.block_table_width = a->shape[1];
    p->batch.block_table_stride = one_row ? a->shape[1] : a->stride_bytes[0] / a->item_bytes;
    return true;
}

static bool open_csr(plan_arrays *p, PyObject *indptr, PyObject *indices)
{
    if (!open_vector(&p->indptr, indptr, "indptr") ||
        !open_vector(&p->indices, indices, "indices")) {
        return false;
    }
    if (p->indptr.shape[0] != p->batch.n_requests + 1) {
        raise_invalid("indptr: has %lld entries for %lld requests", (long long)p->indptr.shape[0],
                      (long long)p->batch.n_requests);
        return false;
    }
    const int32_t *ends = (const int32_t *)(void *)p->indptr.data;
    if (ends[p->batch.n_requests] > p->indices.shape[0]) {
        raise_invalid("indptr: ends at %d, but indices has %lld entries",
                      (int)ends[p->batch.n_requests], (long long)p->indices.shape[0]);
        return false;
    }
    p->batch.indptr = ends;
    p->batch.indices = (const int32_t *)(void *)p->indices.data;
    return true;
}

static bool open_batch(plan_arrays *p, PyObject *computed, PyObject *scheduled, PyObject *table,
                       PyObject *indptr, PyObject *indices)
{
    if (!open_counts(p, computed, scheduled)) {
        return false;
    }
    return table != Py_None ? open_table(p, table) : open_csr(p, indptr, indices);
}

static bool open_out(plan_arrays *p, PyObject *out)
{
    return array_open(&p->out, out, "out", true) && slices_open(&p->slices, &p->out, &p->n);
}

/* plan(computed, scheduled, table, indptr, indices, page_size, n_pages, max_len, out) -> n, T */
PyObject *core_plan(PyObject *self, PyObject *args)
{
    PyObject *computed, *scheduled, *table, *indptr, *indices, *out;
    long long page_size, n_pages, max_len;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOLLLO", &computed, &scheduled, &table, &indptr, &indices,
                          &page_size, &n_pages, &max_len, &out)) {
        return NULL;
    }
    plan_arrays p = {0};
    int64_t     n_tokens = 0;
    bool ok = open_batch(&p, computed, scheduled, table, indptr, indices) && open_out(&p, out);
    if (ok) {
        pkv_error err;
        p.batch.page_size = page_size;
        p.batch.n_pages = n_pages;
        PyThreadState *held = PyEval_SaveThread();
        pkv_status     status = pkv_plan(&p.batch, max_len, &p.slices, &n_tokens, &err);
        PyEval_RestoreThread(held);
        if (status != PKV_OK) {
            raise_error(&err, NULL);
            ok = false;
        }
    }
    close_plan(&p);
    return ok ? Py_BuildValue("(iL)", p.n, (long long)n_tokens) : NULL;
}

/* plan_bound(computed, scheduled, page_size) -> slices */
PyObject *core_plan_bound(PyObject *self, PyObject *args)
{
    PyObject *computed, *scheduled;
    long long page_size;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOL", &computed, &scheduled, &page_size)) {
        return NULL;
    }
    plan_arrays p = {0};
    int64_t     n = 0;
    bool        ok = open_counts(&p, computed, scheduled);
    if (ok) {
        pkv_error err;
        p.batch.page_size = page_size;
        if (pkv_plan_bound(&p.batch, &n, &err) != PKV_OK) {
            raise_error(&err, NULL);
            ok = false;
        }
    }
    close_plan(&p);
    return ok ? PyLong_FromLongLong(n) : NULL;
}

/* Slots of 32 or 64 bits; query_start_loc is p->indptr, if it was opened. */
static pkv_status run_slots(plan_arrays *p, const array *slots, int64_t page_size,
                            int64_t n_slots, int64_t max_len, pkv_error *err)
{
    const int32_t *loc = (const int32_t *)(void *)p->indptr.data;
    const int64_t  n_requests = loc == NULL ? 0 : p->indptr.shape[0] - 1;
    return array_is_int32(slots)
               ? pkv_plan_slots_i32((const int32_t *)(void *)slots->data, slots->shape[0],
                                    page_size, n_slots, max_len, loc, n_requests, &p->slices, err)
               : pkv_plan_slots_i64((const int64_t *)(void *)slots->data, slots->shape[0],
                                    page_size, n_slots, max_len, loc, n_requests, &p->slices, err);
}

/* plan_slots(slots, page_size, n_slots, max_len, query_start_loc | None, out) -> n */
PyObject *core_plan_slots(PyObject *self, PyObject *args)
{
    PyObject *slots, *starts, *out;
    long long page_size, n_slots, max_len;
    (void)self;
    if (!PyArg_ParseTuple(args, "OLLLOO", &slots, &page_size, &n_slots, &max_len, &starts, &out)) {
        return NULL;
    }
    plan_arrays p = {0};
    array       a = {0};
    bool ok = array_open(&a, slots, "slot_mapping", false) && array_is_vector(&a, true) &&
              (starts == Py_None || open_vector(&p.indptr, starts, "query_start_loc")) &&
              open_out(&p, out);
    if (ok) {
        pkv_error      err;
        PyThreadState *held = PyEval_SaveThread();
        pkv_status     status = run_slots(&p, &a, page_size, n_slots, max_len, &err);
        PyEval_RestoreThread(held);
        if (status != PKV_OK) {
            raise_error(&err, NULL);
            ok = false;
        }
    }
    array_close(&a);
    close_plan(&p);
    return ok ? PyLong_FromLong(p.n) : NULL;
}

/*
 * From rows of blocks, of which the first page_size are a page's, to slots of the
 * page.  Slices end with a page.  Those that begin at the padding's row are left out.
 */
static bool leave_blocks(pkv_slices *slices, int64_t page_size, int64_t block_rows,
                         int64_t padding)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < *slices->num_slices; i++) {
        const int64_t row = slices->kv_cache_start[i], offset = row % block_rows;
        if (offset >= page_size) {
            return false;
        }
        if (row != padding) {
            slices->kv_cache_start[kept] = (int32_t)(row / block_rows * page_size + offset);
            slices->new_kv_start[kept] = slices->new_kv_start[i];
            slices->slice_len[kept++] = slices->slice_len[i];
        }
    }
    *slices->num_slices = kept;
    return true;
}

enum { BLOCKS_ROWS, BLOCKS_PAGE_SIZE, BLOCKS_BLOCK_ROWS, BLOCKS_N_ROWS, BLOCKS_PADDING, BLOCKS_OUT,
       N_BLOCKS_ARGS };

/* plan_blocks(rows, page_size, block_rows, n_rows, padding, out) -> n, or -1: outside the pages */
PyObject *core_plan_blocks(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    (void)self;
    if (n_args != N_BLOCKS_ARGS) {
        PyErr_SetString(PyExc_TypeError, "plan_blocks() takes 6 arguments");
        return NULL;
    }
    const int64_t page_size = PyLong_AsLongLong(args[BLOCKS_PAGE_SIZE]);
    const int64_t block_rows = PyLong_AsLongLong(args[BLOCKS_BLOCK_ROWS]);
    const int64_t n_rows = PyLong_AsLongLong(args[BLOCKS_N_ROWS]);
    const int64_t padding = PyLong_AsLongLong(args[BLOCKS_PADDING]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (page_size < 1 || block_rows < page_size || block_rows % page_size != 0) {
        return raise_invalid("block_rows: is %lld, no multiple of a page's %lld",
                             (long long)block_rows, (long long)page_size);
    }
    plan_arrays p = {0};
    array       rows = {0};
    pkv_error   err;
    bool ok = array_open(&rows, args[BLOCKS_ROWS], "rows", false) &&
              array_is_vector(&rows, true) && open_out(&p, args[BLOCKS_OUT]);
    if (ok && run_slots(&p, &rows, page_size, n_rows, page_size, &err) != PKV_OK) {
        raise_error(&err, NULL);
        ok = false;
    }
    if (ok && !leave_blocks(&p.slices, page_size, block_rows, padding)) {
        p.n = -1;
    }
    array_close(&rows);
    close_plan(&p);
    return ok ? PyLong_FromLong(p.n) : NULL;
}

/* The outputs of a step beside its slices. */
typedef struct step_arrays {
    array tables, context_lens, query_start_loc, num_seqs, num_slices;
} step_arrays;

static bool open_step(step_arrays *s, PyObject *tuple, const pkv_step_limits *limits)
{
    static const char *const names[] = {"context_lens", "query_start_loc", "num_seqs",
                                        "num_kv_update_slices"};
    array        *vectors[] = {&s->context_lens, &s->query_start_loc, &s->num_seqs, &s->num_slices};
    const int64_t sizes[] = {limits->max_num_reqs, limits->max_num_reqs + 1, 1, 1};
    if (!array_open(&s->tables, PyTuple_GetItem(tuple, 0), "block_tables", true)) {
        return false;
    }
    for (int i = 0; i < 4; i++) {
        if (!array_open(vectors[i], PyTuple_GetItem(tuple, i + 1), names[i], true) ||
            !array_is_vector(vectors[i], false)) {
            return false;
        }
        if (vectors[i]->shape[0] != sizes[i]) {
            raise_invalid("%s: has the wrong length", names[i]);
            return false;
        }
    }
    return true;
}

static void close_step(step_arrays *s)
{
    array_close(&s->tables);
    array_close(&s->context_lens);
    array_close(&s->query_start_loc);
    array_close(&s->num_seqs);
    array_close(&s->num_slices);
}

static bool run_step(plan_arrays *p, step_arrays *s, const pkv_step_limits *limits, pkv_step *step)
{
    pkv_error err;
    p->slices.num_slices = (int32_t *)(void *)s->num_slices.data;
    *step = (pkv_step){.struct_size = sizeof *step,
                       .slices = &p->slices,
                       .block_tables = (int32_t *)(void *)s->tables.data,
                       .block_tables_width = s->tables.shape[1],
                       .context_lens = (int32_t *)(void *)s->context_lens.data,
                       .query_start_loc = (int32_t *)(void *)s->query_start_loc.data,
                       .num_seqs = (int32_t *)(void *)s->num_seqs.data};
    PyThreadState *held = PyEval_SaveThread();
    pkv_status     status = pkv_step_plan(&p->batch, limits, step, &err);
    PyEval_RestoreThread(held);
    if (status != PKV_OK) {
        raise_error(&err, NULL);
    }
    return status == PKV_OK;
}

/*
 * plan_step(computed, scheduled, table, indptr, indices, page_size, n_pages, max_len,
 *           max_num_reqs, max_num_batched_tokens, gap, per_block, out, step outputs)
 * -> T, token bucket, padded slices
 */
PyObject *core_plan_step(PyObject *self, PyObject *args)
{
    PyObject *computed, *scheduled, *table, *indptr, *indices, *out, *outputs;
    long long page_size, n_pages, max_len, max_reqs, max_tokens, gap;
    int       per_block;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOLLLLLLiOO!", &computed, &scheduled, &table, &indptr,
                          &indices, &page_size, &n_pages, &max_len, &max_reqs, &max_tokens, &gap,
                          &per_block, &out, &PyTuple_Type, &outputs)) {
        return NULL;
    }
    plan_arrays     p = {0};
    step_arrays     s = {0};
    pkv_step        step = {0};
    pkv_step_limits limits = {.struct_size = sizeof limits, .max_num_reqs = max_reqs,
                              .max_num_batched_tokens = max_tokens, .bucket_gap_tokens = gap,
                              .max_slice_tokens = max_len, .num_slices_per_block = per_block};
    bool ok = PyTuple_Size(outputs) == 5 &&
              open_batch(&p, computed, scheduled, table, indptr, indices) && open_out(&p, out) &&
              open_step(&s, outputs, &limits);
    if (ok) {
        p.batch.page_size = page_size;
        p.batch.n_pages = n_pages;
        ok = run_step(&p, &s, &limits, &step);
    }
    close_step(&s);
    close_plan(&p);
    return ok ? Py_BuildValue("(LLL)", (long long)step.n_tokens, (long long)step.token_bucket,
                              (long long)step.padded_num_slices)
              : NULL;
}
