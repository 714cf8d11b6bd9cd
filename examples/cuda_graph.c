/* Plan and write on a GPU, captured in one graph that serves every step.
 *
 *     cc examples/cuda_graph.c $(pkg-config --cflags --libs pagedkv) -lcuda && ./a.out
 *
 * with a library that `make cuda` made, and the CUDA toolkit's cuda.h.  Lengths, block
 * table and counts are read by the device: what changes from step to step is the content
 * of a few small arrays.
 */
#include <cuda.h>
#include <pagedkv/pagedkv_cuda.h>
#include <stdio.h>
#include <stdlib.h>

enum { P = 64, S = 16, H = 2, D = 64, L = 4, R = 2, T = 64, N = 16 }; /* L layers, R requests */

static void check(int failed, const char *what)
{
    if (failed) {
        fprintf(stderr, "%s failed with %d\n", what, failed);
        exit(1);
    }
}

static void check_pkv(pkv_status status, const pkv_error *err)
{
    char line[256];
    if (status != PKV_OK) {
        pkv_error_format(err, line, sizeof line);
        fprintf(stderr, "%s\n", line);
        exit(1);
    }
}

static void *allocate(size_t n_bytes)
{
    CUdeviceptr memory;
    check(cuMemAlloc(&memory, n_bytes), "cuMemAlloc");
    check(cuMemsetD8Async(memory, 0, n_bytes, NULL), "cuMemsetD8Async");
    return (void *)memory;
}

/* What a step looks like to attention; all of it lives on the device. */
static int32_t *num_seqs, *context_lens, *query_start_loc, *block_table, *columns, *num_slices,
    *status_word;

static void put(void *device, const int32_t *values, size_t n, CUstream stream)
{
    check(cuMemcpyHtoDAsync((CUdeviceptr)device, values, n * sizeof *values, stream), "a copy");
}

static void get(int32_t *values, const void *device, size_t n, CUstream stream)
{
    check(cuMemcpyDtoHAsync(values, (CUdeviceptr)device, n * sizeof *values, stream), "a copy");
    check(cuStreamSynchronize(stream), "cuStreamSynchronize");
}

/* Puts a plan and the update of all layers on the stream: two launches. */
static void put_step(pkv_cuda *cuda, const pkv_cache *caches, const pkv_new_kv *new_kvs,
                     CUstream stream)
{
    pkv_error       err = {.what = "", .index = -1, .layer = -1};
    pkv_slices      slices;
    pkv_cuda_batch  batch = {.struct_size = sizeof batch, .num_seqs = num_seqs, .max_num_reqs = R,
                             .context_lens = context_lens, .query_start_loc = query_start_loc,
                             .block_table = block_table, .block_table_stride = 4,
                             .block_table_width = 4, .page_size = S, .n_pages = P};
    pkv_update_opts opts = {.struct_size = sizeof opts, .status_word = status_word};
    check_pkv(pkv_slices_from_array(&slices, sizeof slices, columns, N, num_slices), &err);
    check_pkv(pkv_cuda_plan(cuda, &batch, 0, &slices, status_word, &err, stream), &err);
    check_pkv(pkv_cuda_update_layers(cuda, caches, new_kvs, NULL, L, &slices, 1, &opts, &err,
                                     stream), &err);
}

static void show_slices(int step, CUstream stream)
{
    int32_t n, c[3 * N], faults;
    get(&n, num_slices, 1, stream);
    get(c, columns, 3 * N, stream);
    get(&faults, status_word, 1, stream);
    printf("step %d: %d slices, status word %d\n", step, n, faults);
    for (int i = 0; i < n; i++) {
        printf("    slot %3d <- row %2d, %2d tokens\n", c[i], c[N + i], c[2 * N + i]);
    }
}

int main(void)
{
    static const int32_t table[R * 4] = {5, 0, 0, 0, 9, 10, 11, 0};
    static const int32_t steps[3][1 + R] = {{2, 10, 40}, {2, 11, 41}, {0, 0, 0}}; /* R, lengths */
    static const int32_t starts[3][R + 1] = {{0, 10, 40}, {0, 1, 2}, {0, 0, 0}};
    pkv_cuda   *cuda;
    pkv_error   err = {.what = "", .index = -1, .layer = -1};
    pkv_cache   caches[L];
    pkv_new_kv  new_kvs[L];
    CUdevice    device;
    CUcontext   context;
    CUstream    stream;
    CUgraph     graph;
    CUgraphExec ready;
    check(cuInit(0), "cuInit");
    check(cuDeviceGet(&device, 0), "cuDeviceGet");
    check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check_pkv(pkv_cuda_open(&cuda, 0, &err), &err); /* before any capture */
    check(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");

    const size_t token_bytes = 2 * H * D * sizeof(uint16_t), n_columns = 3 * N;
    for (int l = 0; l < L; l++) {
        check_pkv(pkv_cache_combined(&caches[l], sizeof caches[l], allocate(P * S * token_bytes), P,
                                     S, H, D, PKV_DTYPE_BF16), &err);
        check_pkv(pkv_new_kv_combined(&new_kvs[l], sizeof new_kvs[l], allocate(T * token_bytes), T,
                                      H, D, PKV_DTYPE_BF16), &err);
    }
    num_seqs = allocate(sizeof *num_seqs);
    context_lens = allocate(R * sizeof *context_lens);
    query_start_loc = allocate((R + 1) * sizeof *query_start_loc);
    block_table = allocate(sizeof table);
    columns = allocate(n_columns * sizeof *columns);
    num_slices = allocate(sizeof *num_slices);
    status_word = allocate(sizeof *status_word);
    check(cuStreamSynchronize(NULL), "cuStreamSynchronize");
    put(block_table, table, R * 4, stream);

    check(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "a capture");
    put_step(cuda, caches, new_kvs, stream);
    check(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    check(cuGraphInstantiateWithFlags(&ready, graph, 0), "cuGraphInstantiateWithFlags");

    for (int i = 0; i < 3; i++) {
        put(num_seqs, &steps[i][0], 1, stream);
        put(context_lens, &steps[i][1], R, stream);
        put(query_start_loc, starts[i], R + 1, stream);
        check(cuGraphLaunch(ready, stream), "cuGraphLaunch");
        show_slices(i, stream);
    }
    check(cuGraphExecDestroy(ready), "cuGraphExecDestroy");
    check(cuGraphDestroy(graph), "cuGraphDestroy");
    check(cuStreamDestroy(stream), "cuStreamDestroy");
    pkv_cuda_close(cuda);
    return 0;
}
