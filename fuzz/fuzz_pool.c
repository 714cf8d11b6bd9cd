/*
 * Operations on a pool, drawn from the bytes, each compared with the model of
 * tests/pool_model.c: results, counts, owners, and no byte changed by a refusal.
 */
#include "input.h"

#include "../tests/pool_model.h"

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return take_range(user, min, max);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int64_t sizes[] = {1, 2, 3, 8, 63, 64, 65, 130, 1023, 1024, 1025, 2100};
    input      in = {data, size};
    pool_world w;
    int32_t    allocator = (int32_t)take_range(&in, PKV_POOL_EXTENT, PKV_POOL_FIFO);
    int64_t    n_pages = sizes[take_range(&in, 0, (int64_t)(sizeof sizes / sizeof sizes[0]) - 1)];
    pool_world_init(&w, allocator, n_pages, draw, &in);
    while (in.left > 0) {
        int64_t kind = take_range(&in, 0, 255);
        pool_world_step(&w, kind < 224 ? (int)(kind % POOL_LOST) : POOL_LOST);
        pool_world_compare(&w, in.left % 8 == 0);
    }
    if (w.model.reserving) {
        pool_world_step(&w, POOL_RELEASE);
    }
    pool_world_compare(&w, true);
    pool_world_free(&w);
    return 0;
}
