/* Copies of host memory on a device: see mirror.h. */
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "mirror.h"

enum { POISON = 0xd7, ALIGN = 256, LARGE_BYTES = 64 << 20 };

static struct {
    gpu      *g;
    pkv_cuda *cuda;
    void     *stream;
    int32_t  *status_word;
    uint64_t  n_calls;
} device;

static void close_device(void)
{
    gpu_free(device.g, device.status_word);
    gpu_stream_destroy(device.g, device.stream);
    pkv_cuda_close(device.cuda);
    gpu_close(device.g);
}

static void open_device(void)
{
    pkv_error err;
    void     *word = NULL;
    expect_gpu(NULL, gpu_open(&device.g, 0));
    expect_ok(pkv_cuda_open(&device.cuda, 0, &err), &err);
    expect_gpu(device.g, gpu_stream_create(device.g, &device.stream));
    expect_gpu(device.g, gpu_alloc(device.g, &word, sizeof(int32_t)));
    device.status_word = word;
    assert_int_equal(atexit(close_device), 0);
}

pkv_cuda *mirror_device(void)
{
    if (device.cuda == NULL) {
        open_device();
    }
    return device.cuda;
}

/* ---- regions ------------------------------------------------------------------------ */

void mirror_init(mirror *m)
{
    m->n = 0;
}

void mirror_add(mirror *m, const void *data, int64_t n_bytes)
{
    mirror_region r = {.from = (unsigned char *)(uintptr_t)data};
    r.to = r.from + n_bytes;
    if (n_bytes <= 0) {
        return;
    }
    for (int i = 0; i < m->n;) { /* what meets it becomes part of it */
        mirror_region *other = &m->region[i];
        if (other->from <= r.to && r.from <= other->to) {
            r.from = other->from < r.from ? other->from : r.from;
            r.to = other->to > r.to ? other->to : r.to;
            *other = m->region[--m->n];
            i = 0;
        } else {
            i++;
        }
    }
    assert_true(m->n < MIRROR_REGIONS);
    m->region[m->n++] = r;
}

static size_t bytes_of(const mirror_region *r)
{
    return (size_t)(r->to - r->from);
}

/* A block with the region in it and its margins; the last byte of the block is the margin's. */
static size_t block_bytes(const mirror_region *r)
{
    return 2 * MIRROR_MARGIN + ALIGN + bytes_of(r);
}

bool mirror_is_possible(const mirror *m)
{
    size_t n_bytes = 0;
    for (int i = 0; i < m->n; i++) {
        n_bytes += bytes_of(&m->region[i]);
    }
    return n_bytes <= LARGE_BYTES && getpid() == gettid();
}

void mirror_fill(mirror *m)
{
    (void)mirror_device();
    for (int i = 0; i < m->n; i++) {
        mirror_region *r = &m->region[i];
        expect_gpu(device.g, gpu_alloc(device.g, &r->block, block_bytes(r)));
        expect_gpu(device.g, gpu_fill(device.g, r->block, POISON, block_bytes(r), NULL));
        unsigned char *block = r->block;
        r->there = block + MIRROR_MARGIN + ((uintptr_t)r->from - (uintptr_t)block) % ALIGN;
        expect_gpu(device.g, gpu_write(device.g, r->there, r->from, bytes_of(r)));
    }
}

void mirror_free(mirror *m)
{
    for (int i = 0; i < m->n; i++) {
        gpu_free(device.g, m->region[i].block);
    }
}

void *mirror_there(const mirror *m, const void *data)
{
    const unsigned char *at = data;
    for (int i = 0; i < m->n; i++) {
        const mirror_region *r = &m->region[i];
        if (at >= r->from && at < r->to) {
            return r->there + (at - r->from);
        }
    }
    return NULL;
}

/* The margins of a block are poison as before. */
static void expect_margins(const mirror_region *r, const unsigned char *block)
{
    const size_t before = (size_t)(r->there - (unsigned char *)r->block);
    unsigned char *poison = test_alloc(block_bytes(r));
    memset(poison, POISON, block_bytes(r));
    expect_same_bytes("before a region of the device", block, poison, before);
    expect_same_bytes("behind a region of the device", block + before + bytes_of(r), poison,
                      block_bytes(r) - before - bytes_of(r));
    free(poison);
}

/* Of a region: what was to be written goes to the host, the rest must be the same there. */
static void take(const mirror_region *r, const unsigned char *found, const mirror *written)
{
    unsigned char *expected = test_alloc(bytes_of(r));
    memcpy(expected, r->from, bytes_of(r));
    for (int i = 0; i < written->n; i++) {
        const mirror_region *w = &written->region[i];
        if (w->from >= r->from && w->to <= r->to) {
            memcpy(expected + (w->from - r->from), found + (w->from - r->from), bytes_of(w));
            memcpy(w->from, found + (w->from - r->from), bytes_of(w));
        }
    }
    expect_same_bytes("what a device only reads", found, expected, bytes_of(r));
    free(expected);
}

void mirror_take(const mirror *m, const mirror *written)
{
    for (int i = 0; i < m->n; i++) {
        const mirror_region *r = &m->region[i];
        unsigned char       *block = test_alloc(block_bytes(r));
        expect_gpu(device.g, gpu_read(device.g, block, r->block, block_bytes(r)));
        expect_margins(r, block);
        take(r, block + (r->there - (unsigned char *)r->block), written);
        free(block);
    }
}

void *mirror_new(const void *data, size_t n_bytes)
{
    void *there = NULL;
    (void)mirror_device();
    expect_gpu(device.g, gpu_alloc(device.g, &there, n_bytes));
    expect_gpu(device.g, gpu_write(device.g, there, data, n_bytes));
    return there;
}

void mirror_read(void *data, const void *there, size_t n_bytes)
{
    expect_gpu(device.g, gpu_read(device.g, data, there, n_bytes));
}

void mirror_drop(void *there)
{
    gpu_free(device.g, there);
}

/* ---- calls -------------------------------------------------------------------------- */

int32_t mirror_run_word(mirror_call put, void *ctx, const pkv_update_opts *opts)
{
    pkv_update_opts o = {.struct_size = sizeof o, .status_word = device.status_word};
    const int32_t   none = 0;
    int32_t         word = -1;
    pkv_error       err;
    gpu_graph       graph = NULL;
    const bool      captured = device.n_calls % 2 == 1;
    o.flags = opts != NULL ? opts->flags & ~(uint32_t)PKV_UPDATE_STRICT : 0;
    o.flags |= device.n_calls % 4 > 1 ? (uint32_t)PKV_UPDATE_CHECKED | PKV_UPDATE_DEPENDENT_LAUNCH
                                      : 0;
    device.n_calls++;
    expect_gpu(device.g, gpu_write(device.g, device.status_word, &none, sizeof none));
    if (captured) {
        expect_gpu(device.g, gpu_capture_begin(device.g, device.stream));
    }
    pkv_status status = put(ctx, &o, &err, device.stream);
    if (captured) {
        expect_gpu(device.g, gpu_capture_end(device.g, device.stream, &graph));
        expect_ok(status, &err);
        expect_gpu(device.g, gpu_graph_launch(device.g, graph, device.stream));
    }
    expect_ok(status, &err);
    expect_gpu(device.g, gpu_synchronize(device.g, device.stream));
    gpu_graph_destroy(device.g, graph);
    expect_gpu(device.g, gpu_read(device.g, &word, device.status_word, sizeof word));
    return word;
}

void mirror_run(mirror_call put, void *ctx, const pkv_update_opts *opts)
{
    assert_int_equal(mirror_run_word(put, ctx, opts), 0);
}

uint64_t mirror_n_calls(void)
{
    return device.n_calls;
}
