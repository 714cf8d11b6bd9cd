/*
 * A naive model of pagedkv/prefix.h over the model of a pool: each page with all
 * tokens from its sequence's first one on, and everything found by walking all
 * pages.  prefix_world.h has random operations on an index and its model.
 */
#ifndef PAGEDKV_TESTS_PREFIX_MODEL_H
#define PAGEDKV_TESTS_PREFIX_MODEL_H

#include "pool_model.h"

/* As assert_true() and assert_int_equal(), and the failure names the case. */
#define expect_that(claim) expect_same_bytes(#claim, &(bool){claim}, &(bool){true}, sizeof(bool))
#define expect_number(found, expected)                                                  \
    expect_same_bytes(#found " is not " #expected, &(int64_t){(int64_t)(found)},        \
                      &(int64_t){(int64_t)(expected)}, sizeof(int64_t))

enum {
    PREFIX_MAX_DEPTH = 10, /* pages of a sequence */
    PREFIX_MAX_SIZE = 16,  /* S */
    PREFIX_MAX_TOKENS = PREFIX_MAX_DEPTH * PREFIX_MAX_SIZE
};

/* What a page holds; id 0: nothing that can be found (the tokens are what it held last). */
typedef struct prefix_held {
    uint64_t id;
    uint64_t parent; /* id of the content in front, or the salt */
    uint64_t salt;
    int32_t  group;
    int64_t  n_tokens; /* S a page, from the sequence's first one on */
    int32_t  tokens[PREFIX_MAX_TOKENS];
} prefix_held;

/* An event, with tokens of its own. */
typedef struct prefix_logged {
    pkv_prefix_event event;
    int32_t          tokens[PREFIX_MAX_SIZE];
} prefix_logged;

typedef struct prefix_model {
    pkv_prefix_config config;
    pool_model        pool, pool_before; /* the second: when the reservation began */
    prefix_held      *held;              /* [n_pages] */
    uint64_t          last_id;
    pkv_prefix_counts counts;
    prefix_logged    *log; /* [config.max_events] */
} prefix_model;

void prefix_model_init(prefix_model *m, const pkv_prefix_config *config, int32_t allocator,
                       int64_t n_pages);
void prefix_model_free(prefix_model *m);

/* What every call of the index does first: what the pool has lost is removed. */
void prefix_model_enter(prefix_model *m);

static inline bool prefix_model_is_first(const prefix_model *m, const prefix_held *h)
{
    return h->n_tokens == m->config.page_size;
}

static inline const int32_t *prefix_model_own_tokens(const prefix_model *m, const prefix_held *h)
{
    return h->tokens + h->n_tokens - m->config.page_size;
}

/* Does any page have this content in this group (another one than `but`)? */
bool prefix_model_has(const prefix_model *m, uint64_t id, int32_t group, int64_t but);

/* After a hit of n pages, will any token read page i of the group? */
bool prefix_model_needs(const prefix_model *m, int32_t group, int64_t i, int64_t n);

/* How many pages must be found; ids: [PREFIX_MAX_DEPTH], their contents. */
int64_t prefix_model_find(prefix_model *m, uint64_t salt, const int32_t *tokens, int64_t n_tokens,
                          int64_t max_pages, uint64_t *ids);

/* A call of pkv_prefix_publish(). */
typedef struct prefix_call {
    int32_t        group, behind;
    uint64_t       salt;
    const int32_t *tokens;
    const int32_t *pages;
    int64_t        n;
} prefix_call;

verdict prefix_model_check(const prefix_model *m, const prefix_call *c);

/* ids: [c->n], what the index says that the pages hold now; they are checked. */
void prefix_model_publish(prefix_model *m, const prefix_call *c, const uint64_t *ids);

void prefix_model_clear(prefix_model *m);

/* The first n events were told: they leave the log. */
void prefix_model_told(prefix_model *m, int64_t n);

#endif
