/*
 * Views with scales drawn from the bytes, updates and gathers through them against the
 * model of tests/convert_model.c; then one field of the scales is spoilt: what the check
 * refuses, an update refuses too, with nothing written.
 */
#include "input.h"

#include <stdlib.h>
#include <string.h>

#include "../tests/convert_world.h"

static cw_shape take_shape(input *in)
{
    cw_shape s = {.layout = (int)take_range(in, 0, CW_LAYOUTS - 1),
                  .rows = (int)take_range(in, 0, CW_ROWS - 1),
                  .place = (int)take_range(in, 0, CW_PLACES - 1)};
    cw_set_pair(&s, (int)take_range(in, 0, 20));
    s.page_size = take_range(in, 1, 9);
    s.n_heads = take_range(in, 1, 4);
    for (int p = 0; p < 2; p++) {
        s.head_dim[p] = take_range(in, 1, 140);
        s.kind[p] = (int32_t)take_range(in, PKV_SCALES_NONE, PKV_SCALES_GROUP);
        s.n_groups[p] = (int32_t)take_range(in, 1, 8);
    }
    s.n_tokens = take_range(in, 1, 20);
    s.n_pages = s.n_tokens / s.page_size + take_range(in, 1, 4);
    return s;
}

static void take_isa(input *in)
{
    const int32_t i = (int32_t)take_range(in, 0, 2);
    (void)pkv_isa_select(pkv_isa_usable(i) ? pkv_isa_name(i) : NULL);
}

static void in_turn(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    (void)user;
    for (int32_t p = n_parts - 1; p >= 0; p--) {
        body(ctx, p);
    }
}

/* One field of the scales of K or V becomes any number. */
static void spoil(pkv_cache *cache, input *in)
{
    pkv_scales *s = take_chance(in, 2) ? &cache->k_scales : &cache->v_scales;
    int64_t    *strides[] = {&s->page_stride_bytes, &s->token_stride_bytes,
                             &s->head_stride_bytes};
    const int64_t which = take_range(in, 0, 6);
    if (which < 3) {
        *strides[which] = take_number(in);
    } else if (which == 3) {
        s->kind = take_mostly(in, 0, 5);
    } else if (which == 4) {
        s->group_size = take_mostly(in, 0, 200);
    } else if (which == 5) {
        s->data = (char *)cache->k.data + take_range(in, -300, 300);
    } else {
        s->data = NULL;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input                 in = {data, size};
    const cw_shape        shape = take_shape(&in);
    const pkv_update_opts opts = {.struct_size = sizeof opts,
                                  .flags = take_chance(&in, 2) ? PKV_UPDATE_READ_SOON : 0,
                                  .parallel_for = in_turn};
    cw         w;
    slice_list list;
    rng        r = {(uint64_t)take_range(&in, 0, 65535)};
    pkv_error  err;
    take_isa(&in);
    cw_init(&w, &shape, r.state);
    slice_list_init(&list, 8);
    cw_random_slices(&w, &r, &list);
    cw_gather(&w, &list.view, &opts);
    cw_update(&w, &list.view, &opts);
    cw_gather(&w, &list.view, &opts);
    for (int round = 0; round < 4 && in.left > 0; round++) {
        pkv_cache spoilt = w.cache;
        spoil(&spoilt, &in);
        const pkv_status status = pkv_cache_check(&spoilt, &err);
        if (status != PKV_OK && pkv_update(&spoilt, &w.new_kv, &list.view, &opts, &err) != status) {
            abort();
        }
        cw_expect_same(&w);
    }
    slice_list_free(&list);
    cw_free(&w);
    return 0;
}
