/*
 * A naive model of pagedkv/pool.h: owners, what is kept, the queue and what was
 * lost as plain lists, all counts by walking the pages.  And random operations
 * on a pool and its model at the same time, each compared; the tests draw them
 * from a seed, the fuzz target from its bytes.
 */
#ifndef PAGEDKV_TESTS_POOL_MODEL_H
#define PAGEDKV_TESTS_POOL_MODEL_H

#include "support.h"

#include <string.h>

/* What a call must return. */
typedef struct verdict {
    pkv_status status;
    int32_t    rule;
    int64_t    index;
} verdict;

typedef struct pool_model {
    int32_t  allocator;
    int64_t  n_pages;
    int64_t *owners;  /* [n_pages] */
    bool    *kept;    /* [n_pages] */
    int32_t *queue;   /* [n_pages] without an owner, in the order in which they entered; with
                         PKV_POOL_EXTENT only cached ones */
    int64_t  n_queue;
    int32_t *lost;    /* [n_pages] whose kept content is gone, and that were not told yet */
    int64_t  n_lost;
    int32_t *evicted; /* [n_pages] by the open reservation, in order */
    int64_t  n_evicted;
    int64_t  n_used_peak;
    int64_t  n_evictions;
    bool     reserving;
} pool_model;

void pool_model_init(pool_model *m, int32_t allocator, int64_t n_pages);
void pool_model_free(pool_model *m);
void pool_model_copy(pool_model *to, const pool_model *from); /* both of the same size */

static inline bool pool_model_is_blank(const pool_model *m, int64_t page)
{
    return page >= 0 && page < m->n_pages && m->owners[page] == 0 && !m->kept[page];
}

static inline bool pool_model_is_cached(const pool_model *m, int64_t page)
{
    return m->owners[page] == 0 && m->kept[page];
}

static inline bool pool_model_is_used(const pool_model *m, int64_t page)
{
    return m->owners[page] > 0;
}

/* The first n of `lost` were told. */
static inline void pool_model_told(pool_model *m, int64_t n)
{
    m->n_lost -= n;
    memmove(m->lost, m->lost + n, (size_t)m->n_lost * sizeof *m->lost);
}

/* May it be shared? */
static inline bool pool_model_has_content(const pool_model *m, int64_t page)
{
    return !pool_model_is_blank(m, page);
}

/* How often a list names the page. */
static inline int64_t pool_model_times_named(const int32_t *pages, int64_t n, int32_t page)
{
    int64_t times = 0;
    for (int64_t i = 0; i < n; i++) {
        times += pages[i] == page;
    }
    return times;
}

/* All counts by walking the pages. */
pkv_pool_counts pool_model_count(const pool_model *m);

/*
 * What a call that was good did; `pages` of alloc are those that it gave, which are
 * checked.  `before` is the model as it was when the reservation began.
 */
void pool_model_alloc(pool_model *m, int32_t after, const int32_t *pages, int64_t n);
void pool_model_share(pool_model *m, const int32_t *pages, int64_t n);
void pool_model_drop(pool_model *m, const int32_t *pages, int64_t n); /* pkv_pool_free() */
void pool_model_keep(pool_model *m, const int32_t *pages, int64_t n, bool keep);
void pool_model_forget(pool_model *m, const int32_t *pages, int64_t n);
void pool_model_reserve(pool_model *m, pool_model *before);
void pool_model_commit(pool_model *m);
void pool_model_release(pool_model *m, const pool_model *before);

/* A number in [min, max]. */
typedef int64_t (*pool_draw)(void *user, int64_t min, int64_t max);

enum {
    POOL_ALLOC,
    POOL_SHARE,
    POOL_FREE,
    POOL_KEEP,
    POOL_FORGET,
    POOL_RESERVE,
    POOL_COMMIT,
    POOL_RELEASE,
    POOL_LOST,
    POOL_KINDS
};

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
    int64_t         n_done[2 * POOL_KINDS]; /* by kind, refused ones in the upper half */
    int64_t         n_drawn;     /* kinds drawn */
} pool_world;

void pool_world_init(pool_world *w, int32_t allocator, int64_t n_pages, pool_draw draw, void *user);
void pool_world_free(pool_world *w);

/* A pool with another's bytes, and a model with its model's. */
void pool_world_copy(pool_world *to, const pool_world *from);

/* One operation, its results compared with the model's. */
void pool_world_step(pool_world *w, int kind);

/* Counts, owners of the pages of the last call; `whole`: of all pages, and pkv_pool_check(). */
void pool_world_compare(const pool_world *w, bool whole);

#endif
