/* One step of two requests: plan it once, write it, read it back.
 *
 *     cc examples/update.c $(pkg-config --cflags --libs pagedkv) && ./a.out
 */
#include <pagedkv/pagedkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { P = 256, S = 16, H = 8, D = 128, T = 40, N = 8 }; /* pages, page size, heads, ... */

static void check(pkv_status status, const pkv_error *err)
{
    char line[256];
    if (status != PKV_OK) {
        pkv_error_format(err, line, sizeof line);
        fprintf(stderr, "%s\n", line);
        exit(1);
    }
}

int main(void)
{
    /* Request 0 starts with 10 tokens on page 100; request 1 has 10 and writes 30 more. */
    int32_t computed[] = {0, 10}, scheduled[] = {10, 30};
    int32_t indptr[] = {0, 1, 4}, pages[] = {100, 200, 201, 202};
    int32_t columns[3 * N], n = 0;
    size_t  token_bytes = 2 * H * D * sizeof(uint16_t);
    char   *cache_memory = calloc(P * S, token_bytes), *new_memory = malloc(T * token_bytes);
    char   *read_back = malloc(T * token_bytes);
    if (cache_memory == NULL || new_memory == NULL || read_back == NULL) {
        return 1;
    }
    for (size_t i = 0; i < T * token_bytes; i++) {
        new_memory[i] = (char)(i * 31);
    }
    pkv_batch  batch = {.struct_size = sizeof batch, .n_requests = 2, .computed = computed,
                        .scheduled = scheduled, .indptr = indptr, .indices = pages,
                        .page_size = S, .n_pages = P};
    pkv_slices slices;
    pkv_cache  cache;
    pkv_new_kv new_kv;
    pkv_rows   rows;
    pkv_error  err = {.code = PKV_E_INVALID, .what = "a builder refused its sizes",
                        .index = -1, .layer = -1};
    check(pkv_slices_from_array(&slices, sizeof slices, columns, N, &n), &err);
    check(pkv_cache_combined(&cache, sizeof cache, cache_memory, P, S, H, D, PKV_DTYPE_BF16), &err);
    check(pkv_new_kv_combined(&new_kv, sizeof new_kv, new_memory, T, H, D, PKV_DTYPE_BF16), &err);
    check(pkv_rows_combined(&rows, sizeof rows, read_back, T, H, D, PKV_DTYPE_BF16), &err);

    check(pkv_plan(&batch, 0, &slices, NULL, &err), &err);               /* once a step */
    check(pkv_update(&cache, &new_kv, &slices, NULL, &err), &err);       /* once a layer */
    check(pkv_gather(&cache, &rows, &slices, NULL, &err), &err);

    for (int i = 0; i < n; i++) {
        printf("slot %4d <- row %2d, %2d tokens\n", columns[i], columns[N + i], columns[2 * N + i]);
    }
    printf("read back: %s\n", memcmp(read_back, new_memory, T * token_bytes) == 0 ? "the same"
                                                                                    : "different");
    free(cache_memory);
    free(new_memory);
    free(read_back);
    return 0;
}
