/*
 * The frame around every call on a device: its context, whose pointers and streams these
 * are, and launches.  The kernel is one that finds a bad count and says so in the status.
 */
#include "main.h"

#include <pthread.h>
#include <string.h>

#include "../../src/cuda/device.h"

typedef struct world {
    gpu            *g;
    pkv_cuda       *cuda;
    void           *stream;
    int32_t        *numbers; /* count, status; of the device */
    pkv_i_copy_job *job;
} world;

static void world_open(world *w)
{
    watch_faults();
    *w = (world){.job = test_alloc(sizeof *w->job)};
    void *numbers = NULL;
    expect_gpu(NULL, gpu_open(&w->g, 0));
    pkv_error err;
    expect_ok(pkv_cuda_open(&w->cuda, 0, &err), &err);
    expect_gpu(w->g, gpu_alloc(w->g, &numbers, 2 * sizeof *w->numbers));
    expect_gpu(w->g, gpu_stream_create(w->g, &w->stream));
    w->numbers = numbers;
    memset(w->job, 0, sizeof *w->job);
    w->job->list.count = &w->numbers[0];
    w->job->list.status = &w->numbers[1];
}

static void world_close(world *w)
{
    pkv_cuda_close(w->cuda);
    gpu_stream_destroy(w->g, w->stream);
    gpu_free(w->g, w->numbers);
    gpu_close(w->g);
    free(w->job);
}

static void set_numbers(const world *w, int32_t count)
{
    const int32_t numbers[2] = {count, 0};
    expect_gpu(w->g, gpu_write(w->g, w->numbers, numbers, sizeof numbers));
}

static void expect_status(const world *w, int32_t expected)
{
    int32_t numbers[2];
    expect_gpu(w->g, gpu_read(w->g, numbers, w->numbers, sizeof numbers));
    assert_int_equal(numbers[1], expected);
}

/* One launch, as a call of the library makes it. */
static pkv_status launch_grid(const world *w, uint32_t flags, void *stream, bool one_block,
                              pkv_error *err)
{
    pkv_i_cuda_call call;
    pkv_status      status = pkv_i_cuda_begin(&call, w->cuda, flags, stream, err);
    if (status == PKV_OK) {
        status = pkv_i_cuda_launch(&call, PKV_I_CUDA_copy_16, w->job, one_block, err);
        pkv_i_cuda_end(&call);
    }
    return status;
}

static pkv_status launch(const world *w, uint32_t flags, void *stream, pkv_error *err)
{
    return launch_grid(w, flags, stream, false, err);
}

static void test_launch(void **state)
{
    (void)state;
    world     w;
    pkv_error err;
    world_open(&w);
    void *const streams[] = {w.stream, NULL, (void *)(uintptr_t)1, (void *)(uintptr_t)2};
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        set_numbers(&w, -1);
        expect_ok(launch(&w, PKV_UPDATE_CHECKED, streams[i], &err), &err);
        memset(w.job, 0xff, sizeof *w.job); /* its bytes were taken */
        expect_gpu(w.g, gpu_synchronize(w.g, streams[i]));
        expect_status(&w, PKV_CUDA_FAULT_COUNT);
        memset(w.job, 0, sizeof *w.job);
        w.job->list.count = &w.numbers[0];
        w.job->list.status = &w.numbers[1];
    }
    set_numbers(&w, 0);
    expect_ok(launch(&w, 0, w.stream, &err), &err);
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    expect_status(&w, 0);
    world_close(&w);
}

static void test_grid(void **state)
{
    (void)state;
    needs_fake();
    world       w;
    pkv_error   err;
    fake_counts counts;
    world_open(&w);
    set_numbers(&w, 0);
    for (int one_block = 0; one_block < 2; one_block++) {
        expect_ok(launch_grid(&w, 0, w.stream, one_block != 0, &err), &err);
        assert_true(fake_here(&counts));
        assert_int_equal(counts.last_grid,
                         one_block ? 1 : FAKE_MULTIPROCESSORS * PKV_I_CUDA_BLOCKS_PER_SM);
        assert_int_equal(counts.last_threads, PKV_I_CUDA_THREADS);
    }
    world_close(&w);
}

/* The context need not be current, and what is current is kept. */
static void test_no_current_context(void **state)
{
    (void)state;
    world            w;
    pkv_error        err;
    pkv_i_cu_context now = NULL;
    world_open(&w);
    const pkv_i_driver *driver = &w.cuda->driver;
    set_numbers(&w, -1);
    assert_int_equal(driver->pop(&now), 0);
    assert_ptr_equal(now, w.cuda->context);
    expect_ok(launch(&w, PKV_UPDATE_CHECKED, w.stream, &err), &err);
    assert_int_equal(driver->get_current(&now), 0);
    assert_null(now);
    assert_int_equal(driver->push(w.cuda->context), 0);
    expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
    expect_status(&w, PKV_CUDA_FAULT_COUNT);
    world_close(&w);
}

static void test_graph(void **state)
{
    (void)state;
    world     w;
    pkv_error err;
    gpu_graph graph = NULL;
    world_open(&w);
    set_numbers(&w, -1);
    expect_gpu(w.g, gpu_capture_begin(w.g, w.stream));
    const uint32_t flags = PKV_UPDATE_CHECKED | PKV_UPDATE_DEPENDENT_LAUNCH;
    expect_ok(launch(&w, flags, w.stream, &err), &err);
    expect_ok(launch(&w, flags, w.stream, &err), &err);
    expect_gpu(w.g, gpu_capture_end(w.g, w.stream, &graph));
    expect_status(&w, 0);
    memset(w.job, 0xff, sizeof *w.job);
    for (int32_t count = -2; count <= 2; count++) {
        set_numbers(&w, count);
        expect_gpu(w.g, gpu_graph_launch(w.g, graph, w.stream));
        expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
        expect_status(&w, count == 0 ? 0 : PKV_CUDA_FAULT_COUNT);
    }
    gpu_graph_destroy(w.g, graph);
    world_close(&w);
}

/* What loads code cannot be captured: opening fails, and works afterwards. */
static void test_open_in_capture(void **state)
{
    (void)state;
    world     w;
    pkv_error err;
    gpu_graph graph = NULL;
    pkv_cuda *cuda = NULL;
    needs_fake(); /* a real driver may load a module all the same */
    world_open(&w);
    expect_gpu(w.g, gpu_capture_begin(w.g, w.stream));
    expect_error(pkv_cuda_open(&cuda, 0, &err), &err, PKV_E_DEVICE, PKV_RULE_NONE, -1);
    assert_int_equal(err.detail, FAKE_E_CAPTURE_UNSUPPORTED);
    assert_null(cuda);
    expect_error(launch(&w, 0, w.stream, &err), &err, PKV_E_DEVICE, PKV_RULE_NONE, -1);
    assert_int_equal(err.detail, FAKE_E_CAPTURE_INVALIDATED);
    assert_int_equal(gpu_capture_end(w.g, w.stream, &graph), FAKE_E_CAPTURE_INVALIDATED);
    assert_null(graph);
    expect_ok(pkv_cuda_open(&cuda, 0, &err), &err);
    pkv_cuda_close(cuda);
    expect_ok(launch(&w, 0, w.stream, &err), &err);
    world_close(&w);
}

static void test_failed_launch(void **state)
{
    (void)state;
    needs_fake();
    world     w;
    pkv_error err;
    world_open(&w);
    const int64_t codes[] = {1, 2, 400, 700, 701, 719, 900, 999};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        set_numbers(&w, -1);
        fault_set("LAUNCH", codes[i]);
        expect_error(launch(&w, 0, w.stream, &err), &err, PKV_E_DEVICE, PKV_RULE_NONE, -1);
        assert_int_equal(err.detail, codes[i]);
        expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
        expect_status(&w, 0);
        expect_ok(launch(&w, 0, w.stream, &err), &err);
        expect_gpu(w.g, gpu_synchronize(w.g, w.stream));
        expect_status(&w, PKV_CUDA_FAULT_COUNT);
        fault_set("LAUNCH", codes[i]);
        assert_int_equal(launch(&w, 0, w.stream, NULL), PKV_E_DEVICE);
    }
    world_close(&w);
}

static void test_dependent(void **state)
{
    (void)state;
    needs_fake();
    for (int64_t capability = 80; capability <= 120; capability += 10) {
        world       w;
        pkv_error   err;
        fake_counts before, after;
        fault_set("CAPABILITY", capability);
        world_open(&w);
        set_numbers(&w, 0);
        assert_true(fake_here(&before));
        expect_ok(launch(&w, PKV_UPDATE_DEPENDENT_LAUNCH, w.stream, &err), &err);
        expect_ok(launch(&w, 0, w.stream, &err), &err);
        assert_true(fake_here(&after));
        assert_int_equal(after.n_launches - before.n_launches, 2);
        assert_int_equal(after.n_dependent - before.n_dependent, capability >= 90 ? 1 : 0);
        world_close(&w);
        fault_clear("CAPABILITY");
    }
}

/* Code for 8.0 has no instruction to wait with, whatever the device could. */
static void test_dependent_needs_code(void **state)
{
    (void)state;
    needs_fake();
    world       w;
    pkv_error   err;
    fake_counts before, after;
    fault_set("PTX", 80);
    world_open(&w);
    set_numbers(&w, 0);
    assert_true(fake_here(&before));
    expect_ok(launch(&w, PKV_UPDATE_DEPENDENT_LAUNCH, w.stream, &err), &err);
    assert_true(fake_here(&after));
    assert_int_equal(after.n_launches - before.n_launches, 1);
    assert_int_equal(after.n_dependent - before.n_dependent, 0);
    world_close(&w);
    fault_clear("PTX");
}

/* ---- CHECKED --------------------------------------------------------------- */

static pkv_status look_at(const world *w, uint32_t flags, const void *pointer, pkv_error *err)
{
    pkv_i_cuda_call call;
    pkv_status      status = pkv_i_cuda_begin(&call, w->cuda, flags, w->stream, err);
    if (status == PKV_OK) {
        status = pkv_i_cuda_check_pointer(&call, pointer, "a pointer", err);
        pkv_i_cuda_end(&call);
    }
    return status;
}

static void test_pointers(void **state)
{
    (void)state;
    world     w;
    pkv_error err;
    void     *pinned = NULL;
    int32_t   here = 0;
    world_open(&w);
    expect_gpu(w.g, gpu_host_alloc(w.g, &pinned, 4096));
    const void *const good[] = {NULL, w.numbers, &w.numbers[1], pinned, (char *)pinned + 4095};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        expect_ok(look_at(&w, PKV_UPDATE_CHECKED, good[i], &err), &err);
    }
    const void *const bad[] = {&here, w.job, "text", (void *)(uintptr_t)8};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        expect_ok(look_at(&w, 0, bad[i], &err), &err);
        expect_error(look_at(&w, PKV_UPDATE_CHECKED, bad[i], &err), &err, PKV_E_INVALID,
                     PKV_RULE_NONE, -1);
        assert_string_equal(err.what, "a pointer");
        assert_int_equal(look_at(&w, PKV_UPDATE_CHECKED, bad[i], NULL), PKV_E_INVALID);
    }
    gpu_host_free(w.g, pinned);
    world_close(&w);
}

static void test_other_device(void **state)
{
    (void)state;
    int n = 0;
    expect_gpu(NULL, gpu_count(&n));
    if (n < 2) {
        skip();
    }
    world            w;
    pkv_error        err;
    gpu             *other = NULL;
    void            *memory = NULL, *stream = NULL, *pinned = NULL;
    pkv_i_cu_context before = NULL, now = NULL;
    world_open(&w);
    expect_gpu(NULL, gpu_open(&other, 1));
    expect_gpu(other, gpu_alloc(other, &memory, 64));
    expect_gpu(other, gpu_stream_create(other, &stream));
    expect_gpu(other, gpu_host_alloc(other, &pinned, 64));
    assert_int_equal(w.cuda->driver.get_current(&before), 0);
    expect_ok(look_at(&w, PKV_UPDATE_CHECKED, pinned, &err), &err); /* of use to all devices */
    expect_error(look_at(&w, PKV_UPDATE_CHECKED, memory, &err), &err, PKV_E_INVALID,
                 PKV_RULE_NONE, -1);
    expect_error(launch(&w, PKV_UPDATE_CHECKED, stream, &err), &err, PKV_E_INVALID,
                 PKV_RULE_NONE, -1);
    expect_error(launch(&w, 0, stream, &err), &err, PKV_E_DEVICE, PKV_RULE_NONE, -1);
    expect_ok(launch(&w, PKV_UPDATE_CHECKED, w.stream, &err), &err);
    assert_int_equal(w.cuda->driver.get_current(&now), 0);
    assert_ptr_equal(now, before); /* the other's, whatever failed */
    gpu_free(other, memory);
    gpu_host_free(other, pinned);
    gpu_stream_destroy(other, stream);
    gpu_close(other);
    expect_gpu(w.g, gpu_use(w.g));
    world_close(&w);
}

static void test_no_handle(void **state)
{
    (void)state;
    pkv_i_cuda_call call;
    pkv_error       err;
    expect_error(pkv_i_cuda_begin(&call, NULL, 0, NULL, &err), &err, PKV_E_INVALID, PKV_RULE_NONE,
                 -1);
}

/* ---- threads --------------------------------------------------------------- */

enum { THREADS = 4, LAUNCHES = 50 };

/* A thread with no current context, a stream of its own and the world's handle. */
typedef struct worker {
    pthread_t    thread;
    const world *w;
    void        *stream;
    int          n_failed;
} worker;

static void *work(void *argument)
{
    worker *self = argument;
    for (int i = 0; i < LAUNCHES; i++) {
        uint32_t flags = i % 2 != 0 ? PKV_UPDATE_CHECKED : 0;
        self->n_failed += launch(self->w, flags, self->stream, NULL) != PKV_OK;
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    world  w;
    worker workers[THREADS];
    world_open(&w);
    set_numbers(&w, -1);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.w = &w};
        expect_gpu(w.g, gpu_stream_create(w.g, &workers[i].stream));
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        assert_int_equal(workers[i].n_failed, 0);
        expect_gpu(w.g, gpu_synchronize(w.g, workers[i].stream));
        gpu_stream_destroy(w.g, workers[i].stream);
    }
    expect_status(&w, PKV_CUDA_FAULT_COUNT);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_launch),        cmocka_unit_test(test_no_current_context),
        cmocka_unit_test(test_grid),
        cmocka_unit_test(test_graph),         cmocka_unit_test(test_open_in_capture),
        cmocka_unit_test(test_failed_launch), cmocka_unit_test(test_dependent),
        cmocka_unit_test(test_dependent_needs_code),
        cmocka_unit_test(test_pointers),      cmocka_unit_test(test_other_device),
        cmocka_unit_test(test_no_handle),     cmocka_unit_test(test_threads),
    };
    int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
