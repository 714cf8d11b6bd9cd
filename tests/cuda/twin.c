/* See twin.h. */
#include "twin.h"

#include <string.h>

/* ---- the device --------------------------------------------------------------------- */

void device_open(device *d)
{
    pkv_error err;
    void     *word = NULL;
    watch_faults();
    *d = (device){0};
    expect_gpu(NULL, gpu_open(&d->g, 0));
    expect_ok(pkv_cuda_open(&d->cuda, 0, &err), &err);
    expect_gpu(d->g, gpu_stream_create(d->g, &d->stream));
    expect_gpu(d->g, gpu_alloc(d->g, &word, sizeof *d->status_word));
    d->status_word = word;
    d->opts = (pkv_update_opts){.struct_size = sizeof d->opts, .status_word = d->status_word};
    device_set_status(d, 0);
}

void device_close(device *d)
{
    gpu_free(d->g, d->status_word);
    gpu_stream_destroy(d->g, d->stream);
    pkv_cuda_close(d->cuda);
    gpu_close(d->g);
}

void device_set_status(const device *d, int32_t status)
{
    expect_gpu(d->g, gpu_write(d->g, d->status_word, &status, sizeof status));
}

void device_expect_status(const device *d, int32_t expected)
{
    int32_t found = -1;
    expect_gpu(d->g, gpu_synchronize(d->g, d->stream));
    expect_gpu(d->g, gpu_read(d->g, &found, d->status_word, sizeof found));
    if (found != expected) {
        note_case("status", (uint64_t)(uint32_t)found, "expected %#x", (unsigned int)expected);
        assert_int_equal(found, expected);
    }
    device_set_status(d, 0);
}

int64_t device_launches(void)
{
    fake_counts counts;
    return fake_here(&counts) ? counts.n_launches : 0;
}

void device_expect_launches(int64_t before, int64_t n)
{
    fake_counts counts;
    if (fake_here(&counts)) {
        assert_int_equal(counts.n_launches - before, n);
    }
}

/* ---- memory ------------------------------------------------------------------------- */

twin twin_new(const device *d, const void *host, size_t n_bytes)
{
    void *there = NULL;
    expect_gpu(d->g, gpu_alloc(d->g, &there, n_bytes));
    const twin t = {host, there, n_bytes};
    twin_push(d, &t);
    return t;
}

void twin_free(const device *d, twin *t)
{
    gpu_free(d->g, t->there);
    t->there = NULL;
}

void twin_push(const device *d, const twin *t)
{
    expect_gpu(d->g, gpu_write(d->g, t->there, t->host, t->n_bytes));
}

void *twin_at(const twin *t, const void *host)
{
    return host == NULL ? NULL : t->there + ((const unsigned char *)host - t->host);
}

pkv_cache twin_cache(const twin *t, const pkv_cache *cache)
{
    pkv_cache there = *cache;
    there.k.data = twin_at(t, cache->k.data);
    there.v.data = twin_at(t, cache->v.data);
    there.k_scales.data = twin_at(t, cache->k_scales.data);
    there.v_scales.data = twin_at(t, cache->v_scales.data);
    return there;
}

pkv_new_kv twin_new_kv(const twin *t, const pkv_new_kv *new_kv)
{
    pkv_new_kv there = *new_kv;
    there.k.data = twin_at(t, new_kv->k.data);
    there.v.data = twin_at(t, new_kv->v.data);
    return there;
}

pkv_rows twin_rows(const twin *t, const pkv_rows *rows)
{
    pkv_rows there = *rows;
    there.k.data = twin_at(t, rows->k.data);
    there.v.data = twin_at(t, rows->v.data);
    return there;
}

void twin_expect(const device *d, const twin *t, const void *expected, const char *what)
{
    unsigned char *found = test_alloc(t->n_bytes);
    expect_gpu(d->g, gpu_read(d->g, found, t->there, t->n_bytes));
    expect_same_bytes(what, found, expected, t->n_bytes);
    free(found);
}

/* ---- slices ------------------------------------------------------------------------- */

void device_slices_init(const device *d, pkv_slices *there, int64_t capacity)
{
    void *columns = NULL;
    expect_gpu(d->g, gpu_alloc(d->g, &columns, (size_t)(3 * capacity + 1) * sizeof(int32_t)));
    int32_t *at = columns;
    assert_int_equal(pkv_slices_from_array(there, sizeof *there, at + 1, capacity, at), PKV_OK);
}

void device_slices_free(const device *d, pkv_slices *there)
{
    gpu_free(d->g, there->num_slices);
}

void device_slices_set(const device *d, const pkv_slices *there, const slice_list *list, int32_t n)
{
    const size_t n_numbers = (size_t)(3 * there->capacity + 1);
    int32_t     *numbers = test_alloc(n_numbers * sizeof *numbers);
    assert_int_equal(there->capacity, list->view.capacity);
    numbers[0] = n;
    memcpy(numbers + 1, list->columns, (n_numbers - 1) * sizeof *numbers);
    expect_gpu(d->g, gpu_write(d->g, there->num_slices, numbers, n_numbers * sizeof *numbers));
    free(numbers);
}

void slice_list_garbage(slice_list *list, int kind, uint64_t seed)
{
    static const int     patterns[GARBAGE_KINDS] = {FILL_RANDOM, FILL_ONES, FILL_NANS, 0, 0};
    static const int32_t numbers[] = {INT32_MIN, INT32_MAX, 1}, good[] = {0, 0, 1};
    int32_t *rows[] = {list->view.kv_cache_start, list->view.new_kv_start, list->view.slice_len};
    const size_t n_bytes = (size_t)(list->view.capacity - list->n) * sizeof(int32_t);
    for (size_t i = 0; i < 3; i++) {
        fill(rows[i] + list->n, n_bytes, patterns[kind], seed + i);
        for (int64_t k = list->n; kind > 2 && k < list->view.capacity; k++) {
            rows[i][k] = kind == 3 ? numbers[((size_t)k + i) % 3] : good[i];
        }
    }
}

void slice_list_shuffle(slice_list *list, rng *r)
{
    int32_t *rows[] = {list->view.kv_cache_start, list->view.new_kv_start, list->view.slice_len};
    for (int64_t i = list->n - 1; i > 0; i--) {
        const int64_t other = rng_range(r, 0, i);
        for (size_t c = 0; c < 3; c++) {
            const int32_t kept = rows[c][i];
            rows[c][i] = rows[c][other];
            rows[c][other] = kept;
        }
    }
}
