/* cli/gpu.h on whatever driver is here; and that the fake one is as strict as it says. */
#include "main.h"

#include <string.h>

enum { N = 3000 }; /* bytes; no multiple of what memory is aligned to */

typedef struct world {
    gpu           *g;
    void          *stream;
    unsigned char *a, *b;  /* of the device */
    unsigned char *pinned; /* of the host */
    unsigned char  host[N], found[N];
} world;

static void world_open(world *w)
{
    watch_faults();
    memset(w, 0, sizeof *w);
    void *a = NULL, *b = NULL, *pinned = NULL;
    expect_gpu(NULL, gpu_open(&w->g, 0));
    expect_gpu(w->g, gpu_stream_create(w->g, &w->stream));
    expect_gpu(w->g, gpu_alloc(w->g, &a, N));
    expect_gpu(w->g, gpu_alloc(w->g, &b, N));
    expect_gpu(w->g, gpu_host_alloc(w->g, &pinned, N));
    w->a = a;
    w->b = b;
    w->pinned = pinned;
    fill(w->host, N, FILL_RANDOM, 7);
}

static void world_close(world *w)
{
    gpu_free(w->g, w->a);
    gpu_free(w->g, w->b);
    gpu_host_free(w->g, w->pinned);
    gpu_stream_destroy(w->g, w->stream);
    gpu_close(w->g);
}

static void test_info(void **state)
{
    (void)state;
    gpu     *g = NULL;
    gpu_info info;
    int      n = 0;
    int64_t  left = -1, all = -1;
    expect_gpu(NULL, gpu_count(&n));
    assert_true(n >= 1);
    assert_int_equal(gpu_open(&g, n), FAKE_E_INVALID_DEVICE);
    assert_null(g);
    expect_gpu(NULL, gpu_open(&g, 0));
    gpu_get_info(g, &info);
    assert_true(strlen(info.name) > 0 && info.n_multiprocessors > 0 && info.l2_bytes > 0);
    assert_true(info.compute_major >= 5 && info.driver_version >= 11080);
    expect_gpu(g, gpu_memory(g, &left, &all));
    assert_true(left > 0 && left <= all && all <= info.memory_bytes);
    assert_true(strlen(gpu_error_text(g, 700)) > 0 && strlen(gpu_error_text(NULL, 700)) > 0);
    assert_true(strlen(gpu_error_text(NULL, GPU_E_NO_DRIVER)) > 0);
    gpu_close(g);
    gpu_close(NULL);
}

static void test_copies(void **state)
{
    (void)state;
    world w;
    world_open(&w);
    assert_int_equal((uintptr_t)w.a % 256, 0);
    expect_gpu(w.g, gpu_copy_in(w.g, w.a, w.host, N, w.stream));
    expect_gpu(w.g, gpu_copy(w.g, w.b, w.a, N, w.stream));
    expect_gpu(w.g, gpu_copy_out(w.g, w.pinned, w.b, N, w.stream));
    expect_gpu(w.g, gpu_fill(w.g, w.b, 0x5a, N - 1, w.stream));
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    expect_same_bytes("through two blocks", w.pinned, w.host, N);
    expect_gpu(w.g, gpu_read(w.g, w.found, w.b, N));
    for (int i = 0; i < N - 1; i++) {
        assert_int_equal(w.found[i], 0x5a);
    }
    assert_int_equal(w.found[N - 1], w.host[N - 1]);
    expect_gpu(w.g, gpu_copy(w.g, w.b, w.pinned, 10, NULL)); /* pinned memory is addressed too */
    expect_gpu(w.g, gpu_read(w.g, w.found, w.b, 10));
    expect_same_bytes("of pinned memory", w.found, w.host, 10);
    expect_gpu(w.g, gpu_copy_in(w.g, NULL, NULL, 0, NULL));
    gpu_free(w.g, NULL);
    gpu_host_free(w.g, NULL);
    world_close(&w);
}

static void test_graph(void **state)
{
    (void)state;
    world     w;
    gpu_graph graph = NULL;
    world_open(&w);
    expect_gpu(w.g, gpu_fill(w.g, w.b, 0, N, w.stream));
    expect_gpu(w.g, gpu_capture_begin(w.g, w.stream));
    expect_gpu(w.g, gpu_copy_in(w.g, w.a, w.pinned, N, w.stream));
    expect_gpu(w.g, gpu_copy(w.g, w.b, w.a, N, w.stream));
    expect_gpu(w.g, gpu_capture_end(w.g, w.stream, &graph));
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    expect_gpu(w.g, gpu_read(w.g, w.found, w.b, N));
    for (int i = 0; i < N; i++) {
        assert_int_equal(w.found[i], 0); /* it was recorded only */
    }
    for (uint64_t i = 0; i < 3; i++) {
        fill(w.pinned, N, FILL_RANDOM, i);
        expect_gpu(w.g, gpu_graph_launch(w.g, graph, w.stream));
        expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
        expect_gpu(w.g, gpu_read(w.g, w.found, w.b, N));
        expect_same_bytes("replayed", w.found, w.pinned, N);
    }
    gpu_graph_destroy(w.g, graph);
    gpu_graph_destroy(w.g, NULL);
    world_close(&w);
}

static void test_events(void **state)
{
    (void)state;
    world     w;
    gpu_event start = NULL, end = NULL;
    void     *other = NULL;
    float     ms = -1;
    world_open(&w);
    expect_gpu(w.g, gpu_stream_create(w.g, &other));
    expect_gpu(w.g, gpu_event_create(w.g, &start));
    expect_gpu(w.g, gpu_event_create(w.g, &end));
    assert_int_not_equal(gpu_elapsed_ms(w.g, start, end, &ms), 0); /* neither was recorded */
    expect_gpu(w.g, gpu_event_record(w.g, start, w.stream));
    expect_gpu(w.g, gpu_copy_in(w.g, w.a, w.host, N, w.stream));
    expect_gpu(w.g, gpu_event_record(w.g, end, w.stream));
    expect_gpu(w.g, gpu_stream_wait(w.g, other, end));
    expect_gpu(w.g, gpu_copy_out(w.g, w.found, w.a, N, other));
    expect_gpu(w.g, gpu_synchronize(w.g, other));
    expect_same_bytes("after the event", w.found, w.host, N);
    expect_gpu(w.g, gpu_event_synchronize(w.g, end));
    expect_gpu(w.g, gpu_elapsed_ms(w.g, start, end, &ms));
    assert_true(ms >= 0 && ms < 10000);
    gpu_event_destroy(w.g, start);
    gpu_event_destroy(w.g, end);
    gpu_event_destroy(w.g, NULL);
    gpu_stream_destroy(w.g, other);
    world_close(&w);
}

/* A second stream that joins a capture through an event, and comes back. */
static void test_forked_capture(void **state)
{
    (void)state;
    world     w;
    gpu_event fork = NULL, join = NULL;
    gpu_graph graph = NULL;
    void     *other = NULL;
    world_open(&w);
    expect_gpu(w.g, gpu_stream_create(w.g, &other));
    expect_gpu(w.g, gpu_event_create(w.g, &fork));
    expect_gpu(w.g, gpu_event_create(w.g, &join));
    expect_gpu(w.g, gpu_capture_begin(w.g, w.stream));
    expect_gpu(w.g, gpu_fill(w.g, w.a, 3, N, w.stream));
    expect_gpu(w.g, gpu_event_record(w.g, fork, w.stream));
    expect_gpu(w.g, gpu_stream_wait(w.g, other, fork));
    expect_gpu(w.g, gpu_copy(w.g, w.b, w.a, N, other));
    expect_gpu(w.g, gpu_event_record(w.g, join, other));
    expect_gpu(w.g, gpu_stream_wait(w.g, w.stream, join));
    expect_gpu(w.g, gpu_capture_end(w.g, w.stream, &graph));
    expect_gpu(w.g, gpu_write(w.g, w.b, w.host, N));
    expect_gpu(w.g, gpu_graph_launch(w.g, graph, w.stream));
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    expect_gpu(w.g, gpu_read(w.g, w.found, w.b, N));
    for (int i = 0; i < N; i++) {
        assert_int_equal(w.found[i], 3);
    }
    gpu_graph_destroy(w.g, graph);
    gpu_event_destroy(w.g, fork);
    gpu_event_destroy(w.g, join);
    gpu_stream_destroy(w.g, other);
    world_close(&w);
}

static void test_refusals(void **state)
{
    (void)state;
    world     w;
    void     *nothing = &w;
    gpu_graph graph = NULL;
    world_open(&w);
    assert_int_equal(gpu_alloc(w.g, &nothing, SIZE_MAX / 2), FAKE_E_OUT_OF_MEMORY);
    assert_null(nothing);
    assert_int_equal(gpu_capture_begin(w.g, NULL), FAKE_E_CAPTURE_UNSUPPORTED);
    expect_gpu(w.g, gpu_capture_begin(w.g, w.stream));
    assert_int_equal(gpu_synchronize(w.g, w.stream), FAKE_E_CAPTURE_UNSUPPORTED);
    assert_int_equal(gpu_capture_end(w.g, w.stream, &graph), FAKE_E_CAPTURE_INVALIDATED);
    assert_null(graph);
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    world_close(&w);
}

/* Only the fake driver is so strict: late work, and memory in a capture. */
static void test_fake(void **state)
{
    (void)state;
    needs_fake();
    world     w;
    void     *nothing = &w;
    gpu_graph graph = NULL;
    world_open(&w);
    memset(w.pinned, 1, N);
    expect_gpu(w.g, gpu_copy_in(w.g, w.a, w.pinned, N, w.stream));
    memset(w.pinned, 2, N); /* too early */
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    expect_gpu(w.g, gpu_read(w.g, w.found, w.a, N));
    assert_int_equal(w.found[0], 2);
    assert_int_equal(gpu_copy(w.g, w.a, w.host, N, w.stream), FAKE_E_INVALID_VALUE);
    assert_int_equal(gpu_copy(w.g, w.a + 1, w.b, N, w.stream), FAKE_E_INVALID_VALUE);
    expect_gpu(w.g, gpu_capture_begin(w.g, w.stream));
    assert_int_equal(gpu_alloc(w.g, &nothing, 1), FAKE_E_CAPTURE_UNSUPPORTED);
    assert_null(nothing);
    assert_int_equal(gpu_capture_end(w.g, w.stream, &graph), FAKE_E_CAPTURE_INVALIDATED);
    fault_set("MEMORY", 3 * N);
    expect_gpu(w.g, gpu_alloc(w.g, &nothing, N));
    void *more = NULL;
    assert_int_equal(gpu_alloc(w.g, &more, 1), FAKE_E_OUT_OF_MEMORY);
    fault_clear("MEMORY");
    gpu_free(w.g, nothing);
    world_close(&w);
    gpu *g = NULL;
    fault_set("INIT", 803);
    assert_int_equal(gpu_open(&g, 0), 803);
    fault_clear("INIT");
}

/* Nothing is left of the tests before, with the fake driver. */
static void test_nothing_left(void **state)
{
    (void)state;
    needs_fake();
    fake_counts counts;
    assert_true(fake_here(&counts));
    assert_int_equal(counts.n_retained, 0);
    assert_int_equal(counts.n_blocks, 0);
    assert_int_equal(counts.n_streams, 0);
    assert_int_equal(counts.n_events, 0);
    assert_int_equal(counts.n_graphs, 0);
    assert_int_equal(counts.n_pushed, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),     cmocka_unit_test(test_copies),
        cmocka_unit_test(test_graph),    cmocka_unit_test(test_events),
        cmocka_unit_test(test_forked_capture), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_fake),     cmocka_unit_test(test_nothing_left),
    };
    int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
