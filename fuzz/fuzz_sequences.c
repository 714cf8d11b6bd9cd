/*
 * Operations on sequences, their pool and their prefix index, drawn from the
 * bytes, on the model of tests/seq_model.h: every sequence reads back what it
 * must after each, refused calls change nothing, and steps that fail or are
 * released leave no trace.
 */
#include "input.h"

#include "../tests/seq_model.h"

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return take_range(user, min, max);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int64_t sizes[] = {1, 2, 3, 16, 33};
    input     in = {data, size};
    seq_world w;
    seq_shape shape = {0};
    shape.page_size = sizes[take_range(&in, 0, 4)];
    shape.n_groups = (int32_t)take_range(&in, 1, SEQ_GROUPS);
    shape.allocator = (int32_t)take_range(&in, PKV_POOL_EXTENT, PKV_POOL_FIFO);
    shape.bad_hash = take_range(&in, 0, 3) == 3;
    shape.n_pages = take_range(&in, 1, 40);
    shape.max_seqs = take_range(&in, 1, 8);
    for (int32_t g = 1; g < shape.n_groups; g++) {
        shape.groups[g].window_tokens = take_range(&in, 0, 3 * shape.page_size + 2);
        shape.groups[g].sink_tokens = take_range(&in, 0, shape.page_size + 1);
    }
    seq_world_init(&w, &shape, draw, &in);
    while (in.left > 0) {
        seq_world_step(&w);
    }
    seq_world_check(&w);
    seq_world_free(&w);
    return 0;
}
