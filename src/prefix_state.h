/*
 * What the files of the prefix index share.
 *
 * An entry a page, at the page's number, so a page has one content at most; and
 * buckets by hash, each a chain of entries.  Contents are not stored apart: the
 * pages that have one share its id.  Of those of one group one stands in the chain
 * for all; they are a ring, so that a page comes and goes at the same cost however
 * many are equal.  What the pool reports as lost leaves its chain at the next call,
 * so an undone eviction needs no undoing here.
 */
#ifndef PAGEDKV_SRC_PREFIX_STATE_H
#define PAGEDKV_SRC_PREFIX_STATE_H

#include "internal.h"
#include "pool_pages.h"

enum {
    PREFIX_MAGIC = 0x78707670,
    PREFIX_END = -1,     /* of a chain */
    PREFIX_NOWHERE = -2, /* in no chain: the page cannot be found */
    PREFIX_NAMED = -3,   /* the same, and named by the call that runs */
    PREFIX_TWIN = -4     /* in no chain: an equal page of its group is */
};

typedef struct pkv_i_content {
    uint64_t hash;    /* of its tokens and all in front */
    uint64_t id;      /* 0: none */
    uint64_t parent;  /* id of the content in front, or the salt */
    int32_t  next;    /* page of the same bucket, or one of PREFIX_* */
    uint8_t  group;
    bool     is_first;  /* parent is a salt */
    bool     has_twins; /* it stands in the chain for others too */
    int32_t  tokens[]; /* [S] */
} pkv_i_content;

/*
 * Pages of one group with the same content, a ring; of one alone, or that cannot be
 * found, itself.  Apart from the contents: who has no twins does not need it.
 */
typedef struct pkv_i_twins {
    int32_t next, prev; /* prev of the one in the chain: the newest */
} pkv_i_twins;

/* What stands behind the next page of tokens. */
typedef struct pkv_i_front {
    uint64_t hash;
    uint64_t id;       /* or the salt; 0 and not first: a content that is in no page */
    bool     is_first;
} pkv_i_front;

typedef struct pkv_i_logged {
    uint64_t id, parent, hash;
    int32_t  kind, page;
    int32_t  group;
    int32_t  is_first;
} pkv_i_logged;

typedef struct pkv_i_prefix_layout {
    uint64_t heads, contents, twins, log, total;
} pkv_i_prefix_layout;

struct pkv_prefix {
    uint32_t            magic;
    pkv_i_prefix_layout at;
    pkv_pool           *pool;
    int64_t             n_pages; /* of the pool */
    pkv_prefix_config   config;
    uint64_t            content_bytes; /* from one page's to the next one's */
    uint64_t            mask;          /* of a hash, to its bucket */
    uint64_t            last_id;
    int64_t             log_head; /* the log is a ring of config.max_events */
    pkv_prefix_counts   counts;
    pkv_allocator       memory; /* of a created index */
};

static inline void *pkv_i_prefix_at(const pkv_prefix *p, uint64_t offset)
{
    return (char *)(uintptr_t)p + offset;
}

static inline int32_t *pkv_i_prefix_head(const pkv_prefix *p, uint64_t hash)
{
    return (int32_t *)pkv_i_prefix_at(p, p->at.heads) + (hash & p->mask);
}

static inline pkv_i_content *pkv_i_prefix_content(const pkv_prefix *p, int64_t page)
{
    return pkv_i_prefix_at(p, p->at.contents + (uint64_t)page * p->content_bytes);
}

static inline pkv_i_twins *pkv_i_prefix_twins(const pkv_prefix *p, int64_t page)
{
    return (pkv_i_twins *)pkv_i_prefix_at(p, p->at.twins) + page;
}

static inline uint64_t pkv_i_prefix_hash(const pkv_prefix *p, const int32_t *tokens, uint64_t front)
{
    return p->config.hash(tokens, (size_t)p->config.page_size * sizeof *tokens, front);
}

/* What stands in front of a sequence's first page. */
pkv_i_front pkv_i_prefix_root(const pkv_prefix *p, uint64_t salt);

/* Is there an index?  If so, it forgets what the pool has lost. */
pkv_status pkv_i_prefix_enter(pkv_prefix *p, pkv_error *err);

/*
 * Into its bucket with its id (0: a new one) and all the rest, or out of it.  Both
 * are logged.
 */
void pkv_i_prefix_link(pkv_prefix *p, int32_t page, const pkv_i_content *what,
                       const int32_t *tokens);
void pkv_i_prefix_unlink(pkv_prefix *p, int32_t page);

/* Drops what waits in the log and logs that all is gone. */
void pkv_i_prefix_log_clear(pkv_prefix *p);

#endif
