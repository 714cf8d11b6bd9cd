/*
 * A naive model of pagedkv/pool.h: owners, what is kept, the queue as a plain
 * list, all counts by walking the pages.  And random operations on a pool and
 * its model at the same time, each compared; the tests draw them from a seed,
 * the fuzz target from its bytes.
 */
#ifndef PAGEDKV_TESTS_POOL_MODEL_H
#define PAGEDKV_TESTS_POOL_MODEL_H

#include "support.h"

typedef struct pool_model {
    int32_t  allocator;
    int64_t  n_pages;
    int64_t *owners;  /* [n_pages] */
    bool    *kept;    /* [n_pages] */
    int32_t *queue;   /* [n_pages] without an owner, in the order in which they entered; with
                         PKV_POOL_EXTENT only cached ones */
    int64_t  n_queue;
    int64_t  n_used_peak;
    int64_t  n_evictions;
    bool     reserving;
    int64_t  n_noted; /* pages shared in it */
} pool_model;

void pool_model_init(pool_model *m, int32_t allocator, int64_t n_pages);
void pool_model_free(pool_model *m);
void pool_model_copy(pool_model *to, const pool_model *from); /* both of the same size */

/* A number in [min, max]. */
typedef int64_t (*pool_draw)(void *user, int64_t min, int64_t max);

/* A pool in memory of its own, its model, and where the next numbers come from. */
typedef struct pool_world {
    pkv_pool_config config;
    uint64_t        bytes;
    unsigned char  *memory, *memory_before; /* [bytes]; the second for comparing */
    void           *memory_block[2];        /* what malloc() gave */
    pkv_pool       *pool;
    pool_model      model, model_before; /* the second: when the reservation began */
    pool_draw       draw;
    void           *user;
    int32_t        *pages; /* [2 * n_pages + 8] named or received by the last call */
    int64_t         n;
    int64_t         n_pages_max; /* most that one operation names, mostly */
    pkv_status      status;      /* of the last call */
    int64_t         n_done[16];  /* operations by kind, refused ones in the upper half */
    int64_t         n_drawn;     /* kinds drawn */
} pool_world;

enum {
    POOL_ALLOC,
    POOL_SHARE,
    POOL_FREE,
    POOL_KEEP,
    POOL_FORGET,
    POOL_RESERVE,
    POOL_COMMIT,
    POOL_RELEASE,
    POOL_KINDS
};

void pool_world_init(pool_world *w, int32_t allocator, int64_t n_pages, pool_draw draw, void *user);
void pool_world_free(pool_world *w);

/* A pool with another's bytes, and a model with its model's. */
void pool_world_copy(pool_world *to, const pool_world *from);

/* One operation, its results compared with the model's. */
void pool_world_step(pool_world *w, int kind);

/* Any kind, with few reservations; the pool is filled and emptied by turns. */
int pool_world_draw_kind(pool_world *w);

/* Counts, owners of the pages of the last call; `whole`: of all pages, and pkv_pool_check(). */
void pool_world_compare(const pool_world *w, bool whole);

#endif
