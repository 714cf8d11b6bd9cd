/* What the tests of the prefix index by hand share: a world in few words, and sequences in it. */
#ifndef PAGEDKV_TESTS_PREFIX_STORY_H
#define PAGEDKV_TESTS_PREFIX_STORY_H

#include "prefix_world.h"

/* A sequence that was computed: its full pages, of each group. */
typedef struct story_seq {
    int64_t n_pages;
    int32_t pages[PREFIX_MAX_GROUPS][PREFIX_MAX_DEPTH];
} story_seq;

/* One group that keeps all, and windows behind it (groups: [n_groups - 1], or NULL). */
static inline prefix_shape story_shape(int32_t allocator, int64_t n_pages, int64_t page_size,
                                       const pkv_prefix_group *windows, int32_t n_windows)
{
    prefix_shape s = {.allocator = allocator, .n_pages = n_pages, .page_size = page_size,
                      .n_groups = n_windows + 1, .max_events = 100, .hash = prefix_hash_fnv};
    for (int32_t g = 0; g < n_windows; g++) {
        s.groups[g + 1] = windows[g];
    }
    return s;
}

/* Tokens that are nowhere else: first, first + 1, ... */
static inline void story_tokens(int32_t *tokens, int64_t n, int32_t first)
{
    for (int64_t i = 0; i < n; i++) {
        tokens[i] = first + (int32_t)i;
    }
}

/* A sequence without a hit: pages for all its tokens' full pages, published in all groups. */
static inline story_seq story_compute(prefix_world *w, uint64_t salt, const int32_t *tokens,
                                      int64_t n_tokens)
{
    story_seq s = {.n_pages = n_tokens / w->shape.page_size};
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        prefix_world_alloc(w, -1, 0, s.pages[g], s.n_pages);
        const prefix_call call = {g, -1, salt, tokens, s.pages[g], s.n_pages};
        expect_number(prefix_world_publish(w, &call), PKV_OK);
    }
    return s;
}

/* Its owner leaves, the last pages first. */
static inline void story_end(prefix_world *w, const story_seq *s)
{
    for (int64_t i = s->n_pages; i-- > 0;) {
        for (int32_t g = 0; g < w->shape.n_groups; g++) {
            prefix_world_drop(w, &s->pages[g][i], 1);
        }
    }
}

/* How many pages are found. */
static inline int64_t story_find(prefix_world *w, uint64_t salt, const int32_t *tokens,
                                 int64_t n_tokens)
{
    int32_t pages[PREFIX_MAX_GROUPS * PREFIX_MAX_DEPTH];
    return prefix_world_find(w, salt, tokens, n_tokens, pages, PREFIX_MAX_DEPTH);
}

static inline void story_over(prefix_world *w)
{
    prefix_world_compare(w, true);
    prefix_world_free(w);
}

#endif
