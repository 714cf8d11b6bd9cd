/*
 * Linked into pagedkv_faulty with --wrap: a library that makes one mistake, to
 * show that the replay finds it.  The environment says which: FAULT is its
 * name, FAULT_AT the number of the update call that makes it (all of them
 * without), FAULT_SLOT the slot of FAULT=stray.
 */
#include <pagedkv/pagedkv.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

pkv_status __real_pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err);
pkv_status __wrap_pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err);
pkv_status __real_pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                           int64_t *n_tokens_out, pkv_error *err);
pkv_status __wrap_pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                           int64_t *n_tokens_out, pkv_error *err);

pkv_status __real_pkv_seqs_reserve(pkv_seqs *seqs, const pkv_seq *seqs_of_step,
                                   const int32_t *n_tokens, const pkv_prefix_hit *prefixes,
                                   int64_t n, int64_t room, pkv_page_copy *copies,
                                   int64_t max_copies, int64_t *n_copies_out, pkv_error *err);
pkv_status __wrap_pkv_seqs_reserve(pkv_seqs *seqs, const pkv_seq *seqs_of_step,
                                   const int32_t *n_tokens, const pkv_prefix_hit *prefixes,
                                   int64_t n, int64_t room, pkv_page_copy *copies,
                                   int64_t max_copies, int64_t *n_copies_out, pkv_error *err);
pkv_status __real_pkv_seq_close(pkv_seqs *seqs, pkv_seq seq, pkv_error *err);
pkv_status __wrap_pkv_seq_close(pkv_seqs *seqs, pkv_seq seq, pkv_error *err);

pkv_status __real_pkv_prefix_find(pkv_prefix *prefix, uint64_t salt, const int32_t *tokens,
                                  int64_t n_tokens, int32_t *pages, int64_t max_pages,
                                  pkv_prefix_hit *out, pkv_error *err);
pkv_status __wrap_pkv_prefix_find(pkv_prefix *prefix, uint64_t salt, const int32_t *tokens,
                                  int64_t n_tokens, int32_t *pages, int64_t max_pages,
                                  pkv_prefix_hit *out, pkv_error *err);

/* Number of the update call that comes next. */
static int64_t next_call;

/* As cli/replay_run.c writes a step: three calls whose order rotates. */
static const char *way_of(int64_t call)
{
    static const char *const ways[] = {"static", "exact", "merged"};
    return ways[(call / 3 + call % 3) % 3];
}

/* Is FAULT this name?  With a way: this name, a dash, and the way. */
static bool is_fault(const char *name, const char *way)
{
    const char  *fault = getenv("FAULT");
    const size_t length = strlen(name);
    if (fault == NULL || strncmp(fault, name, length) != 0) {
        return false;
    }
    return way == NULL ? fault[length] == '\0'
                       : fault[length] == '-' && strcmp(fault + length + 1, way) == 0;
}

static int64_t number_from(const char *variable, int64_t otherwise)
{
    const char *text = getenv(variable);
    return text != NULL ? strtoll(text, NULL, 10) : otherwise;
}

/* Where a slot of the replay's combined layout lies. */
static unsigned char *slot_row(const pkv_cache *cache, int64_t slot)
{
    return (unsigned char *)cache->k.data + slot * cache->k.token_stride_bytes;
}

/* The last slice that is not empty; 0 where all are. */
static int32_t last_slice(const pkv_slices *slices)
{
    int32_t i = *slices->num_slices - 1;
    while (i > 0 && slices->slice_len[i] == 0) {
        i--;
    }
    return i;
}

/* Spoils what the call is told: slices and views are copies. */
static void spoil_call(pkv_slices *slices, const pkv_cache *cache, pkv_new_kv *source,
                       const char *way)
{
    const int32_t last = last_slice(slices);
    int32_t      *start = &slices->kv_cache_start[last];
    if (is_fault("drop", way)) {
        slices->slice_len[last] = 0;
    } else if (is_fault("cut", way)) {
        slices->slice_len[last]--;
    } else if (is_fault("swap", NULL)) {
        const void *k = source->k.data;
        source->k.data = source->v.data;
        source->v.data = k;
    } else if (is_fault("wrong-page", NULL)) {
        bool at_end = *start / cache->page_size == cache->n_pages - 1;
        *start += (int32_t)(at_end ? -cache->page_size : cache->page_size);
    } else if (is_fault("wrong-row", NULL)) {
        slices->new_kv_start[last] += slices->new_kv_start[last] > 0 ? -1 : 1;
    }
}

/* Spoils the cache behind the call. */
static void spoil_cache(const pkv_cache *cache, const pkv_slices *slices)
{
    if (is_fault("flip", NULL)) {
        *slot_row(cache, slices->kv_cache_start[0]) ^= 0x10;
    } else if (is_fault("stray", NULL)) {
        *slot_row(cache, number_from("FAULT_SLOT", 0)) ^= 0x10;
    } else if (is_fault("scale", NULL)) {
        const pkv_scales *s = &cache->v_scales;
        ((unsigned char *)s->data)[slices->kv_cache_start[0] * s->token_stride_bytes] ^= 0x10;
    }
}

/* The last byte of every row that the slices name, taken out or put back. */
static void move_last_bytes(const pkv_cache *cache, const pkv_slices *slices, unsigned char *bytes,
                            bool put_back)
{
    for (int32_t i = 0; i < *slices->num_slices; i++) {
        for (int32_t j = 0; j < slices->slice_len[i]; j++, bytes++) {
            unsigned char *last = slot_row(cache, (int64_t)slices->kv_cache_start[i] + j + 1) - 1;
            if (put_back) {
                *last = *bytes;
            } else {
                *bytes = *last;
            }
        }
    }
}

/* The call with the fault in it; where it concerns one layer, the first or the last. */
static pkv_status faulty_call(const pkv_cache *caches, const pkv_new_kv *new_kvs, int64_t n_layers,
                              const pkv_slices *slices, const pkv_update_opts *opts,
                              pkv_error *err, const char *way)
{
    const int32_t n = *slices->num_slices;
    int32_t       count = n;
    int32_t      *columns = calloc((size_t)n + 1, 3 * sizeof *columns);
    pkv_new_kv   *sources = calloc((size_t)n_layers, sizeof *sources);
    unsigned char *bytes = malloc((size_t)new_kvs->n_tokens + 1);
    pkv_slices     copy;
    if (columns == NULL || sources == NULL || bytes == NULL ||
        pkv_slices_from_array(&copy, sizeof copy, columns, n, &count) != PKV_OK) {
        abort();
    }
    memcpy(copy.kv_cache_start, slices->kv_cache_start, (size_t)n * sizeof *columns);
    memcpy(copy.new_kv_start, slices->new_kv_start, (size_t)n * sizeof *columns);
    memcpy(copy.slice_len, slices->slice_len, (size_t)n * sizeof *columns);
    memcpy(sources, new_kvs, (size_t)n_layers * sizeof *sources);
    spoil_call(&copy, caches, sources, way);
    if (is_fault("wrong-layer", NULL)) {
        sources[0] = sources[n_layers - 1];
    }
    move_last_bytes(caches, slices, bytes, false);
    pkv_status status =
        __real_pkv_update_layers(caches, sources, NULL, n_layers - is_fault("fewer-layers", NULL),
                                 &copy, 1, opts, err);
    if (is_fault("short", way)) {
        move_last_bytes(caches, slices, bytes, true);
    }
    spoil_cache(caches, slices);
    free(columns);
    free(sources);
    free(bytes);
    return status;
}

pkv_status __wrap_pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err)
{
    const int64_t call = next_call++;
    if (getenv("FAULT") == NULL || number_from("FAULT_AT", call) != call) {
        return __real_pkv_update_layers(caches, new_kvs, group_ids, n_layers, groups, n_groups,
                                        opts, err);
    }
    return faulty_call(caches, new_kvs, n_layers, groups, opts, err, way_of(call));
}

/* The page that the first request writes next becomes its neighbour; then itself again. */
static void move_table(const pkv_batch *batch)
{
    const int64_t row = batch->table_rows != NULL ? batch->table_rows[0] : 0;
    int32_t *pages = (int32_t *)(uintptr_t)batch->block_table + row * batch->block_table_stride;
    pages[batch->computed[0] / batch->page_size] ^= 1;
}

/* A plan without its last slice, or with it in two; FAULT_AT is the step's first update. */
pkv_status __wrap_pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                           int64_t *n_tokens_out, pkv_error *err)
{
    const char *way = max_slice_tokens == 0 ? "merged" : "exact";
    if (is_fault("table-moves", NULL) && number_from("FAULT_AT", next_call) == next_call) {
        move_table(batch);
    }
    pkv_status status = __real_pkv_plan(batch, max_slice_tokens, out, n_tokens_out, err);
    if (status != PKV_OK || number_from("FAULT_AT", next_call) != next_call) {
        return status;
    }
    const int32_t last = *out->num_slices - 1;
    if (is_fault("plan-drop", way)) {
        *out->num_slices = last;
    } else if (is_fault("plan-split", way) && out->slice_len[last] > 1 &&
               last + 1 < out->capacity) {
        out->kv_cache_start[last + 1] = out->kv_cache_start[last] + 1;
        out->new_kv_start[last + 1] = out->new_kv_start[last] + 1;
        out->slice_len[last + 1] = out->slice_len[last] - 1;
        out->slice_len[last] = 1;
        *out->num_slices = last + 2;
    }
    return status;
}

/* No pages at all; or, as the first of each sequence, one that is in use or none. */
pkv_status __wrap_pkv_seqs_reserve(pkv_seqs *seqs, const pkv_seq *seqs_of_step,
                                   const int32_t *n_tokens, const pkv_prefix_hit *prefixes,
                                   int64_t n, int64_t room, pkv_page_copy *copies,
                                   int64_t max_copies, int64_t *n_copies_out, pkv_error *err)
{
    static int32_t first_page = -1;
    if (is_fault("no-pages", NULL)) {
        return PKV_E_NO_PAGES;
    }
    pkv_status status = __real_pkv_seqs_reserve(seqs, seqs_of_step, n_tokens, prefixes, n, room,
                                                copies, max_copies, n_copies_out, err);
    pkv_seq_state state = {.struct_size = sizeof state};
    if (status == PKV_OK && pkv_seq_info(seqs, seqs_of_step[0], &state, err) == PKV_OK) {
        int32_t *pages = (int32_t *)(uintptr_t)state.pages;
        first_page = first_page < 0 ? pages[0] : first_page;
        if (is_fault("page-twice", NULL)) {
            pages[0] = first_page;
        } else if (is_fault("page-none", NULL)) {
            pages[0] = INT32_MAX;
        }
    }
    return status;
}

/* A hit that is too long, begins with another prompt's page, or with one that is not written. */
pkv_status __wrap_pkv_prefix_find(pkv_prefix *prefix, uint64_t salt, const int32_t *tokens,
                                  int64_t n_tokens, int32_t *pages, int64_t max_pages,
                                  pkv_prefix_hit *out, pkv_error *err)
{
    const int64_t    n_asked = is_fault("hit-long", NULL) ? n_tokens + 1 : n_tokens;
    const int64_t    n_pages = max_pages < n_asked ? max_pages : n_asked;
    pkv_prefix_event event;
    pkv_status       status = __real_pkv_prefix_find(prefix, salt, tokens, n_asked, pages, n_pages,
                                                     out, err);
    const bool is_other = is_fault("hit-other", NULL) && n_tokens > 64;
    for (int32_t page = 0; status == PKV_OK && is_other; page++) {
        if (pkv_prefix_page(prefix, page, &event, NULL) != PKV_OK) {
            break;
        }
        if (event.id != 0 && event.is_first != 0 && (out->n_pages == 0 || page != pages[0])) {
            pages[0] = page;
            out->n_pages = out->n_pages > 0 ? out->n_pages : 1;
            break;
        }
    }
    if (status == PKV_OK && is_fault("hit-unwritten", NULL) && out->n_pages > 1) {
        pages[0] = pages[1];
    }
    return status;
}

/* A sequence that keeps its pages; FAULT_AT is the next step's first update. */
pkv_status __wrap_pkv_seq_close(pkv_seqs *seqs, pkv_seq seq, pkv_error *err)
{
    if (is_fault("leak", NULL) && number_from("FAULT_AT", next_call) == next_call) {
        return PKV_OK;
    }
    return __real_pkv_seq_close(seqs, seq, err);
}
