/*
 * Operations on a prefix index and its pool, drawn from the bytes, each compared
 * with the model of tests/prefix_model.c: what is found and refused, the log,
 * counts, and no byte changed by a refusal.
 */
#include "input.h"

#include "../tests/prefix_random.h"

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return take_range(user, min, max);
}

static prefix_shape take_shape(input *in)
{
    static const int64_t  sizes[] = {1, 2, 3, PREFIX_MAX_SIZE};
    static const pkv_hash hashes[] = {prefix_hash_fnv, prefix_hash_same, prefix_hash_two_bits};
    prefix_shape s = {.allocator = (int32_t)take_range(in, PKV_POOL_EXTENT, PKV_POOL_FIFO),
                      .n_pages = take_range(in, 1, 40),
                      .page_size = sizes[take_range(in, 0, 3)],
                      .n_groups = (int32_t)take_range(in, 1, PREFIX_MAX_GROUPS),
                      .max_events = take_range(in, 0, 3) == 0 ? take_range(in, 0, 5) : 1000,
                      .hash = hashes[take_range(in, 0, 2)]};
    for (int32_t g = 1; g < s.n_groups; g++) {
        s.groups[g].window_tokens = take_range(in, 0, 4 * s.page_size);
        s.groups[g].sink_tokens = take_range(in, 0, 2 * s.page_size);
    }
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input         in = {data, size};
    prefix_random r = {.draw = draw, .user = &in};
    prefix_shape  shape = take_shape(&in);
    prefix_world_init(&r.w, &shape);
    while (in.left > 0) {
        int64_t kind = take_range(&in, 0, 255);
        prefix_random_step(&r, kind < 240 ? (int)(kind % PREFIX_CLEAR) : PREFIX_CLEAR);
        if (in.left % 4 == 0) {
            prefix_world_compare(&r.w, in.left % 8 == 0);
        }
    }
    if (r.w.model.pool.reserving) {
        prefix_random_step(&r, PREFIX_RELEASE);
    }
    prefix_world_events(&r.w, 1000);
    prefix_world_compare(&r.w, true);
    prefix_world_free(&r.w);
    return 0;
}
