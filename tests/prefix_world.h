/*
 * A pool with a prefix index beside their model: each call is made on both and
 * compared - what is found and refused, the log, counts, no byte changed by a
 * refusal.
 */
#ifndef PAGEDKV_TESTS_PREFIX_WORLD_H
#define PAGEDKV_TESTS_PREFIX_WORLD_H

#include "prefix_model.h"

enum { PREFIX_MAX_GROUPS = 3 };

typedef struct prefix_shape {
    int32_t          allocator;
    int64_t          n_pages;
    int64_t          page_size; /* <= PREFIX_MAX_SIZE */
    int32_t          n_groups;  /* <= PREFIX_MAX_GROUPS */
    pkv_prefix_group groups[PREFIX_MAX_GROUPS];
    int64_t          max_events;
    pkv_hash         hash;
} prefix_shape;

/* A content in a group, as a reader of the log knows it. */
typedef struct prefix_known {
    uint64_t id;
    int32_t  group;
} prefix_known;

typedef struct prefix_world {
    prefix_shape   shape;
    prefix_model   model;
    uint64_t       bytes[2];              /* of the pool, of the index */
    unsigned char *memory[2], *before[2]; /* the second for comparing */
    pkv_pool      *pool;
    pkv_prefix    *prefix;
    prefix_known  *known; /* [n_pages]: what the log told */
    int64_t        n_known;
    bool           missed;                       /* the log was too short: known is wrong */
    int64_t        n_hits[PREFIX_MAX_DEPTH + 1]; /* finds by the pages of their hit */
    int64_t        n_windowed;                   /* pages of hits that were not needed */
    int64_t        n_gone;                       /* events without tokens */
    int64_t        n_begun;                      /* times that known was made anew */
    uint64_t       digest;                       /* of all that the index has answered */
} prefix_world;

void prefix_world_init(prefix_world *w, const prefix_shape *shape);
void prefix_world_free(prefix_world *w);

/* Counts; `whole`: every page, both checks too. */
void prefix_world_compare(prefix_world *w, bool whole);

/* ---- calls of the pool, which must be good ------------------------------- */

int64_t prefix_world_count_free(const prefix_world *w); /* pages that allocation could take */
void prefix_world_alloc(prefix_world *w, int32_t after, int64_t room, int32_t *pages, int64_t n);
void prefix_world_share(prefix_world *w, const int32_t *pages, int64_t n);
void prefix_world_drop(prefix_world *w, const int32_t *pages, int64_t n); /* pkv_pool_free() */
void prefix_world_keep(prefix_world *w, const int32_t *pages, int64_t n, bool keep);
void prefix_world_forget(prefix_world *w, const int32_t *pages, int64_t n);
void prefix_world_reserve(prefix_world *w);
void prefix_world_commit(prefix_world *w);
void prefix_world_release(prefix_world *w);

/* ---- calls of the index -------------------------------------------------- */

/* pages: [G, stride].  Returns the pages of the hit. */
int64_t prefix_world_find(prefix_world *w, uint64_t salt, const int32_t *tokens, int64_t n_tokens,
                          int32_t *pages, int64_t stride);

/* Good or refused, as the model says. */
pkv_status prefix_world_publish(prefix_world *w, const prefix_call *call);
pkv_status prefix_world_clear(prefix_world *w);
pkv_status prefix_world_page(prefix_world *w, int32_t page);

/* Reads at most n events; what they tell must be what the model has, once there are no more. */
void prefix_world_events(prefix_world *w, int64_t n);

/* ---- hashes -------------------------------------------------------------- */

/* One where xxHash is not at hand, and two bad ones: the same for all, and one of 2 bits. */
uint64_t prefix_hash_fnv(const void *data, size_t bytes, uint64_t seed);
uint64_t prefix_hash_same(const void *data, size_t bytes, uint64_t seed);
uint64_t prefix_hash_two_bits(const void *data, size_t bytes, uint64_t seed);

#endif
