/*
 * Random operations on a pool with a prefix index and on their model: the tests
 * draw them from a seed, the fuzz target from its bytes.
 */
#ifndef PAGEDKV_TESTS_PREFIX_RANDOM_H
#define PAGEDKV_TESTS_PREFIX_RANDOM_H

#include "prefix_world.h"

enum {
    PREFIX_ALLOC,
    PREFIX_SHARE,
    PREFIX_FREE,
    PREFIX_CLOSE, /* a sequence's pages lose an owner each, mostly the last one first */
    PREFIX_KEEP,
    PREFIX_FORGET,
    PREFIX_RESERVE,
    PREFIX_COMMIT,
    PREFIX_RELEASE,
    PREFIX_FIND,
    PREFIX_ADMIT, /* what is found is shared, the rest allocated and published */
    PREFIX_PUBLISH,
    PREFIX_EVENTS,
    PREFIX_PAGE,
    PREFIX_CLEAR,
    PREFIX_KINDS
};

typedef struct prefix_random {
    prefix_world w;
    pool_draw    draw;
    void        *user;
    int64_t      n_drawn;                  /* kinds */
    int64_t      n_undone;                 /* evictions that a release undid */
    int64_t      n_done[2 * PREFIX_KINDS]; /* by kind, refused ones in the upper half */
} prefix_random;

/* One operation, its results compared with the model's. */
void prefix_random_step(prefix_random *r, int kind);

/* Any kind; the pool is filled and emptied by turns. */
int prefix_random_kind(prefix_random *r);

#endif
