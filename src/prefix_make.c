/* The prefix index: making one. */
#include <string.h>

#include "allocator.h"
#include "prefix_state.h"

static const int64_t MAX_PAGE_SIZE = (int64_t)1 << 20, MAX_EVENTS = (int64_t)1 << 30;

static pkv_status check_config(const pkv_prefix_config *c, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(c, sizeof *c, err));
    if (c->flags != 0) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a flag of the prefix index is unknown");
    }
    if (c->page_size < 1 || c->page_size > MAX_PAGE_SIZE || c->n_groups < 1 ||
        c->n_groups > PKV_MAX_GROUPS || c->max_events < 0 || c->max_events > MAX_EVENTS) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "page_size is not in 1..2^20, n_groups not in 1..8, or max_events not "
                          "in 0..2^30");
    }
    for (int32_t g = 0; g < c->n_groups; g++) {
        if (c->groups[g].window_tokens < 0 || c->groups[g].sink_tokens < 0) {
            return pkv_i_fail(err, PKV_E_INVALID, "a window is negative");
        }
    }
    if (c->hash == NULL || c->groups[0].window_tokens != 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "hash is NULL, or the first group has a window");
    }
    return PKV_OK;
}

/* Nothing overflows: pages are at most 2^30, and of 2^20 tokens. */
static pkv_status lay_out(const pkv_prefix_config *c, const pkv_pool *pool, pkv_prefix *p,
                          pkv_error *err)
{
    PKV_I_TRY(check_config(c, err));
    const int64_t n_pages = pkv_i_pool_n_pages(pool);
    if (n_pages < 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no pool");
    }
    uint64_t end = sizeof *p, n_heads = 1;
    while (n_heads < 2 * (uint64_t)n_pages) { /* few chains have a second entry to wait for */
        n_heads *= 2;
    }
    *p = (pkv_prefix){.magic = PREFIX_MAGIC, .n_pages = n_pages, .mask = n_heads - 1,
                      .counts = {.struct_size = sizeof p->counts}};
    memcpy(&p->config, c, sizeof p->config);
    p->content_bytes = (sizeof(pkv_i_content) + (uint64_t)c->page_size * sizeof(int32_t) + 7) /
                       8 * 8;
    p->at.heads = pkv_i_place_array(&end, n_heads * sizeof(int32_t));
    p->at.contents = pkv_i_place_array(&end, (uint64_t)n_pages * p->content_bytes);
    p->at.twins = pkv_i_place_array(&end, (uint64_t)n_pages * sizeof(pkv_i_twins));
    p->at.log = pkv_i_place_array(&end, (uint64_t)c->max_events * sizeof(pkv_i_logged));
    p->at.total = pkv_i_place_array(&end, 0);
    return PKV_OK;
}

pkv_status pkv_prefix_bytes(const pkv_prefix_config *config, const pkv_pool *pool,
                            uint64_t *bytes_out, pkv_error *err)
{
    pkv_prefix p = {0}; /* gcc does not see that lay_out() sets it */
    PKV_I_TRY(lay_out(config, pool, &p, err));
    if (bytes_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "bytes_out is NULL");
    }
    *bytes_out = p.at.total;
    return PKV_OK;
}

pkv_status pkv_prefix_init(const pkv_prefix_config *config, pkv_pool *pool, void *memory,
                           uint64_t memory_bytes, pkv_prefix **out, pkv_error *err)
{
    pkv_prefix laid = {0};
    PKV_I_TRY(lay_out(config, pool, &laid, err));
    if (memory == NULL || out == NULL || memory_bytes < laid.at.total ||
        (uintptr_t)memory % PKV_I_ALIGN_BYTES != 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "memory is NULL, too small or not aligned to 64");
    }
    pkv_prefix *p = memory;
    *p = laid;
    p->pool = pool;
    memset(pkv_i_prefix_head(p, 0), 0xff, (size_t)(p->mask + 1) * sizeof(int32_t));
    for (int64_t i = 0; i < p->n_pages; i++) {
        *pkv_i_prefix_content(p, i) = (pkv_i_content){.next = PREFIX_NOWHERE};
        *pkv_i_prefix_twins(p, i) = (pkv_i_twins){(int32_t)i, (int32_t)i};
    }
    *out = p;
    return PKV_OK;
}

pkv_status pkv_prefix_create(const pkv_prefix_config *config, pkv_pool *pool,
                             const pkv_allocator *allocator, pkv_prefix **out, pkv_error *err)
{
    pkv_allocator a;
    uint64_t      bytes = 0;
    void         *memory = NULL;
    PKV_I_TRY(pkv_prefix_bytes(config, pool, &bytes, err));
    if (out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "out is NULL");
    }
    PKV_I_TRY(pkv_i_take_memory(allocator, bytes, &a, &memory, err));
    pkv_status status = pkv_prefix_init(config, pool, memory, bytes, out, err);
    if (status != PKV_OK) {
        a.release(a.user, memory, (size_t)bytes);
        return status;
    }
    (*out)->memory = a;
    return PKV_OK;
}

void pkv_prefix_destroy(pkv_prefix *prefix)
{
    if (prefix != NULL && prefix->memory.release != NULL) {
        pkv_allocator a = prefix->memory;
        uint64_t      bytes = prefix->at.total;
        prefix->magic = 0;
        a.release(a.user, prefix, (size_t)bytes);
    }
}
