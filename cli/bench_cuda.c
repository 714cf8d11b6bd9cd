/* `pagedkv bench --backend cuda`: the device's memory, the list of cases, the table. */
#include "bench_cuda.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory -------------------------------------------------------------- */

enum { BLOCK_BYTES = (4 << 20) - 9472 }; /* no whole number of rows: none is like the next */

/*
 * Numbers that every float format finds moderate, bf16 in each half of a word, in blocks
 * from the host that the device copies on.
 */
int cuda_fill(cuda_bench *b, char *memory, int64_t n_bytes)
{
    uint64_t *block = malloc(BLOCK_BYTES);
    if (block == NULL) {
        return cli_no_memory("bench");
    }
    for (size_t i = 0; i < BLOCK_BYTES / sizeof block[0]; i++) {
        /* Exponents 0x3c80 .. 0x407f; no byte is a NaN of fp8. */
        block[i] = (bench_random(&b->random) & 0x83bf83bf83bf83bfU) + 0x3c803c803c803c80U;
    }
    gpu    *g = b->device.gpu;
    void   *stream = b->device.stream;
    int64_t done = n_bytes < BLOCK_BYTES ? n_bytes : BLOCK_BYTES;
    int     code = gpu_copy_in(g, memory, block, (size_t)done, stream);
    while (code == 0 && done < n_bytes) {
        int64_t next = n_bytes - done < done ? n_bytes - done : done;
        code = gpu_copy(g, memory + done, memory, (size_t)next, stream);
        done += next;
    }
    code = code != 0 ? code : gpu_synchronize(g, stream);
    free(block);
    return device_status(&b->device, code, "memory of the device");
}

/* A quarter of what is free, at most 4 GiB, for the cache; half of that for new K/V. */
static int size_memory(cuda_bench *b)
{
    const bool quick = b->options->quick;
    int64_t    free_bytes = 0, total_bytes = 0;
    int        code = gpu_memory(b->device.gpu, &free_bytes, &total_bytes);

    b->cache_bytes = quick ? (int64_t)64 << 20 : (int64_t)4 << 30;
    if (b->cache_bytes > free_bytes / 4) {
        b->cache_bytes = free_bytes / 4 / 4096 * 4096;
    }
    b->source_bytes = b->cache_bytes / 2;
    b->flushed_bytes = quick ? (int64_t)1 << 20 : 2 * b->device.info.l2_bytes;
    return device_status(&b->device, code, "memory of the device");
}

static int open_memory(cuda_bench *b)
{
    const float  scale = 0.25F;
    gpu         *g = b->device.gpu;
    const size_t numbers = CUDA_AT_NODES + (size_t)b->n_nodes * CUDA_NODE_NUMBERS;
    int          status = size_memory(b);
    if (status != CLI_OK) {
        return status;
    }
    b->staging = calloc(numbers, sizeof b->staging[0]);
    if (b->staging == NULL) {
        return cli_no_memory("bench");
    }
    int code = gpu_alloc(g, (void **)(void *)&b->cache, (size_t)b->cache_bytes);
    code = code != 0 ? code : gpu_alloc(g, (void **)(void *)&b->source, (size_t)b->source_bytes);
    code = code != 0 ? code : gpu_alloc(g, (void **)(void *)&b->flushed,
                                        (size_t)b->flushed_bytes + 1);
    code = code != 0 ? code : gpu_alloc(g, (void **)(void *)&b->numbers,
                                        numbers * sizeof b->numbers[0]);
    code = code != 0 ? code : gpu_fill(g, b->numbers, 0, CUDA_AT_NODES * sizeof b->numbers[0],
                                       b->device.stream);
    code = code != 0 ? code : gpu_copy_in(g, b->numbers + CUDA_AT_SCALE, &scale, sizeof scale,
                                          b->device.stream);
    code = code != 0 ? code : gpu_synchronize(g, b->device.stream);
    status = device_status(&b->device, code, "memory of the device");
    status = status != CLI_OK ? status : cuda_fill(b, b->source, b->source_bytes);
    return status != CLI_OK ? status : cuda_fill(b, b->cache, b->cache_bytes);
}

static void close_bench(cuda_bench *b)
{
    if (b->device.gpu != NULL) {
        gpu_free(b->device.gpu, b->cache);
        gpu_free(b->device.gpu, b->source);
        gpu_free(b->device.gpu, b->flushed);
        gpu_free(b->device.gpu, b->numbers);
    }
    free(b->staging);
    device_close(&b->device);
}

int32_t *cuda_staged(const cuda_bench *b, int64_t node)
{
    return b->staging + node * CUDA_NODE_NUMBERS;
}

int32_t *cuda_numbers(const cuda_bench *b, int64_t node)
{
    return b->numbers + CUDA_AT_NODES + node * CUDA_NODE_NUMBERS;
}

int cuda_put_numbers(cuda_bench *b)
{
    const size_t n_bytes = (size_t)b->n_nodes * CUDA_NODE_NUMBERS * sizeof b->staging[0];
    int          code = gpu_copy_in(b->device.gpu, cuda_numbers(b, 0), b->staging, n_bytes,
                                    b->device.stream);
    code = code != 0 ? code : gpu_synchronize(b->device.gpu, b->device.stream);
    return device_status(&b->device, code, "plans to the device");
}

char *cuda_turn(char *block, int64_t block_bytes, int64_t n_bytes, int64_t node)
{
    const int64_t aligned_bytes = (n_bytes + 255) / 256 * 256;
    const int64_t n_places = aligned_bytes > 0 ? block_bytes / aligned_bytes : 1;
    return block + (n_places > 0 ? node % n_places : 0) * aligned_bytes;
}

int cuda_read(cuda_bench *b, void *host, const void *device, int64_t n_bytes)
{
    int code = gpu_copy_out(b->device.gpu, host, device, (size_t)n_bytes, b->device.stream);
    code = code != 0 ? code : gpu_synchronize(b->device.gpu, b->device.stream);
    return device_status(&b->device, code, "results from the device");
}

int32_t *cuda_shuffled(int64_t n, uint64_t *random)
{
    int32_t *order = malloc((size_t)n * sizeof order[0]);
    for (int64_t i = 0; order != NULL && i < n; i++) {
        int64_t other = bench_random_below(random, i + 1);
        order[i] = order[other];
        order[other] = (int32_t)i;
    }
    return order;
}

/* ---- all cases ----------------------------------------------------------- */

static int run_items(cuda_bench *b, const cuda_item *items, int n, int64_t end_ns,
                     bench_results *results)
{
    int status = CLI_OK;
    for (int i = 0; i < n && status == CLI_OK; i++) {
        char    text[128];
        int64_t now = cli_now_ns();
        snprintf(text, sizeof text, "%d/%d: %s %s", i + 1, n, items[i].case_name, items[i].pattern);
        bench_progress(b->options, text);
        status = items[i].run(b, &items[i], now + (end_ns - now) / (n - i), results);
    }
    bench_progress(b->options, NULL);
    return status;
}

int bench_cuda(const bench_options *options, int64_t end_ns, bench_results *results)
{
    cuda_bench b = {.options = options, .random = 11,
                    .n_nodes = options->quick ? CUDA_QUICK_NODES : CUDA_MAX_NODES};
    cuda_item *items = calloc(CUDA_MAX_ITEMS, sizeof *items);
    if (items == NULL) {
        return cli_no_memory("bench");
    }
    int n = cuda_update_items(options, items, 0);
    n = cuda_pages_items(options, items, n);
    int status = n > 0 ? device_open(&b.device) : CLI_OK;
    if (n > 0 && status == CLI_OK) {
        memcpy(results->device, b.device.info.name, sizeof results->device);
        status = open_memory(&b);
        status = status != CLI_OK ? status : run_items(&b, items, n, end_ns, results);
    }
    close_bench(&b);
    free(items);
    return status;
}

/* ---- the table ----------------------------------------------------------- */

/* A number, or a dash. */
static bench_text count_text(int64_t n)
{
    bench_text out = {"-"};
    if (n >= 0) {
        snprintf(out.s, sizeof out.s, "%d", (int)n);
    }
    return out;
}

static void print_row(FILE *out, const bench_row *row)
{
    const bool is_merged = strcmp(row->plan, "merged") == 0 && strcmp(row->case_name, "plan") == 0;
    const bool is_stream = strcmp(row->launch, "stream") == 0;
    char       pattern[32];
    snprintf(pattern, sizeof pattern, "%s%s%s", row->pattern, is_merged ? " merged" : "",
             is_stream ? " stream" : "");
    fprintf(out, "%-15s %-4.4s %4lld %6lld %5s %5s %-4s %7s %4.0f", pattern,
            row->layout != NULL ? row->layout : "-", (long long)row->page_size,
            (long long)row->tokens, count_text(row->num_slices).s,
            count_text(row->padded_num_slices).s, row->source, bench_time_text(row->ns_median).s,
            row->bytes_per_s >= 0 ? row->bytes_per_s / 1e9 : 0);
    fprintf(out, " %4s %4s %7s\n", bench_fraction_text(row->limit_fraction).s,
            bench_fraction_text(row->calls_fraction >= 0 ? row->calls_fraction
                                                         : row->unpadded_fraction).s,
            row->floor_ns >= 0 ? bench_time_text(row->floor_ns).s : "-");
}

/* The library's own rows; what they are compared with stands in them. */
void bench_print_cuda(const bench_results *results, FILE *out)
{
    const char *last = "";
    fprintf(out, "%s; a call is one of %lld in a graph\n", results->device,
            (long long)(results->n_rows > 0 ? results->rows[0].nodes : 0));
    for (int64_t i = 0; i < results->n_rows; i++) {
        const bench_row *row = &results->rows[i];
        if (strcmp(row->impl, "pagedkv") != 0) {
            continue;
        }
        if (strcmp(last, row->case_name) != 0) {
            fprintf(out, "\n%-15s      page tokens slice     N src     time GB/s copy call"
                         "     n=0\n", row->case_name);
        }
        last = row->case_name;
        print_row(out, row);
    }
    fprintf(out,
            "\nGB/s: bytes read plus written.  How many times as fast as\n"
            "  copy  a copy of as many bytes within the device\n"
            "  call  layers: a call for each of the %d; padded: the same call with N = n\n"
            "n=0: the same call with a count of 0, which is what a launch costs.\n",
            CUDA_MAX_LAYERS);
}
