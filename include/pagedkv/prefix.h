/*
 * pagedkv/prefix.h - which pages already hold the beginning of a prompt.
 *
 * Included by pagedkv/pagedkv.h, whose conventions hold here too.  An index of
 * full pages by their content.  It stands on one pool (pagedkv/pool.h) and works
 * without sequences; pkv_seq_publish() and pkv_seqs_reserve() of
 * pagedkv/sequences.h join the two.
 *
 * A content is S tokens and the content in front of them, back to the first
 * token of the sequence and its salt.  Each content that is in some page has an
 * id, which no other content ever has.  A page is found by comparing its tokens
 * and the id of the content in front: the hash only says where to look, so
 * contents whose hashes collide are told apart, and so are a page that was
 * evicted and what took its place.
 */
#ifndef PAGEDKV_PREFIX_H
#define PAGEDKV_PREFIX_H

#include <pagedkv/pool.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * An index.  Threads, memory and copies of it: as a pool; it holds the address
 * of its pool, which must outlive it and must not move.  Calls on a pool, its
 * index and its sequences must not run at the same time, but for those that take
 * all of them const.  A pool has one index: it takes pkv_pool_lost() for itself.
 */
typedef struct pkv_prefix pkv_prefix;

/*
 * A hash of `bytes` bytes at `data`: XXH3_64bits_withSeed() of xxHash is such a
 * function.  A bad one makes the index slow, never wrong.
 */
typedef uint64_t (*pkv_hash)(const void *data, size_t bytes, uint64_t seed);

/*
 * Layers that keep the same tokens share a group, which has pages of its own
 * (pkv_seqs_config.n_groups).
 */
typedef struct pkv_prefix_group {
    int64_t window_tokens; /* a token reads itself and so many before it, less one; 0: all */
    int64_t sink_tokens;   /* and these first ones */
} pkv_prefix_group;

enum { PKV_MAX_GROUPS = 8 };

typedef struct pkv_prefix_config {
    size_t           struct_size;            /* sizeof(pkv_prefix_config) */
    int64_t          page_size;              /* S, 1 .. 2^20 tokens */
    int32_t          n_groups;               /* G, 1 .. PKV_MAX_GROUPS */
    uint32_t         flags;                  /* 0 */
    pkv_prefix_group groups[PKV_MAX_GROUPS]; /* the first one must have no window: by its pages
                                                contents are followed */
    int64_t          max_events;             /* that wait for pkv_prefix_events(), 0 .. 2^30 */
    pkv_hash         hash;
    uint64_t         seed; /* of the hash: a number that nobody outside can guess */
} pkv_prefix_config;

/* pkv_prefix_event.kind */
enum {
    PKV_PREFIX_STORED  = 1, /* a content is found in a group, and was not before */
    PKV_PREFIX_REMOVED = 2, /* its last page in the group is gone */
    PKV_PREFIX_CLEARED = 3  /* all are gone */
};

/* One entry of the log, or what pkv_prefix_page() knows of a page. */
typedef struct pkv_prefix_event {
    int32_t        kind;
    int32_t        group;
    int32_t        page;     /* STORED: the page, or another that has the content now; REMOVED:
                                the last one; CLEARED: -1 */
    int32_t        is_first; /* 1: the content starts at token 0, and has no parent but a salt */
    uint64_t       id;
    uint64_t       parent;   /* id of the content in front, or the salt */
    const int32_t *tokens;   /* STORED: [S], valid until the next call; NULL: gone since, which
                                the log tells further on */
} pkv_prefix_event;

/* What pkv_prefix_stats() fills. */
typedef struct pkv_prefix_counts {
    size_t  struct_size;     /* sizeof(pkv_prefix_counts) */
    int64_t n_pages;         /* that can be found, with those that an open reservation took */
    int64_t n_finds;         /* calls of pkv_prefix_find() */
    int64_t n_find_tokens;   /* their prompts' tokens */
    int64_t n_hit_tokens;    /* of those, found */
    int64_t n_published;     /* pages that were published */
    int64_t n_removed;       /* pages that cannot be found any more */
    int64_t n_events;        /* that wait */
    int64_t n_events_lost;   /* that found no room; 0 without a log */
} pkv_prefix_counts;

/* The beginning of a prompt that pkv_prefix_find() found, as pkv_seqs_reserve() takes it. */
typedef struct pkv_prefix_hit {
    const int32_t *pages;  /* [G, stride]; -1: none (a window has passed it) */
    int64_t        stride; /* >= n_pages */
    int64_t        n_pages;
    int64_t        stamp;  /* of the pool, when it was found */
} pkv_prefix_hit;

/*
 * pkv_prefix_bytes(), pkv_prefix_init(), pkv_prefix_create(),
 * pkv_prefix_destroy() - as their namesakes of the pool.  For each page of the
 * pool 4 * S + 48 to 56 bytes (S rounded up to 2), for each event 40, and up to
 * 1000 whatever their number.
 *
 * PKV_E_INVALID too for a number out of range, a hash that is NULL, or a first
 * group with a window.  The index begins empty: pages that are kept already are
 * unknown to it.  pkv_prefix_destroy() leaves pages kept.
 */
PKV_API pkv_status pkv_prefix_bytes(const pkv_prefix_config *config, const pkv_pool *pool,
                                    uint64_t *bytes_out, pkv_error *err);
PKV_API pkv_status pkv_prefix_init(const pkv_prefix_config *config, pkv_pool *pool, void *memory,
                                   uint64_t memory_bytes, pkv_prefix **out, pkv_error *err);
PKV_API pkv_status pkv_prefix_create(const pkv_prefix_config *config, pkv_pool *pool,
                                     const pkv_allocator *allocator, pkv_prefix **out,
                                     pkv_error *err);
PKV_API void pkv_prefix_destroy(pkv_prefix *prefix);

/*
 * pkv_prefix_find() - the pages that hold the beginning of a prompt.
 *
 * salt         Prompts with different salts share nothing: a number for each
 *              tenant or adapter, or 0.
 * tokens       [n_tokens], the prompt.  They are compared as numbers: where one
 *              number stands for more than one content (an image's patches), put
 *              one that tells them apart.
 * pages        [G, max_pages], a row for each group; receives the pages of the
 *              hit.  -1 in a group with a window: no token from the hit's end on
 *              reads that page, and it is not needed.
 * max_pages    Most pages of the hit, >= 0.
 * out          Receives the hit: `pages`, max_pages as their stride, how many it
 *              has (the same in all groups) and the stamp.
 *
 * A hit has whole pages and at most n_tokens - 1 tokens: the last token's page
 * is always computed, into a page of the sequence's own.
 * The pages are not the caller's yet.  Hand them to pkv_seqs_reserve(), which
 * refuses them if any page of the pool has lost a content since: the stamp counts
 * these.  Or share them (pkv_pool_share()) before anything is allocated or
 * forgotten.
 * Inside a reservation pages that it took are not found.  What is found stays good
 * if it is released; if it is committed and took any cached page, the stamp is out
 * of date.
 *
 * Returns PKV_OK; PKV_E_INVALID.
 * Cost: one pass over the tokens, hash before lookup; 30 ns for a page of 16
 * tokens whose entry is in the processor's cache, some 100 ns where it is not.
 * Each group more: what its pages cost to look up.  How many pages are equal, and
 * which of a window's are missing, does not matter.
 */
PKV_API pkv_status pkv_prefix_find(pkv_prefix *prefix, uint64_t salt, const int32_t *tokens,
                                   int64_t n_tokens, int32_t *pages, int64_t max_pages,
                                   pkv_prefix_hit *out, pkv_error *err);

/*
 * pkv_prefix_publish() - from now on these pages can be found.  Call it when they
 * are written, in every layer of the group, and not before.
 *
 * group   0 .. G - 1.
 * salt    As for pkv_prefix_find(); looked at if `behind` is -1.
 * behind  A published page, of any group, that holds the content in front of the
 *         first one; -1: they are a sequence's first.
 * tokens  [n * S] of these pages.
 * pages   [n], each used, one behind the other; kept from now on
 *         (pkv_pool_keep()).
 *
 * A page that is published with this content already stays so.  Where another
 * page has the same content, one of them is found, and while any of them is left:
 * nobody's table changes.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_RANGE with rule PAGE and the index of a
 * page that is none (-1: `behind`); PKV_E_STATE with the index of a page that has
 * no owner or holds another content, for `behind` if it is not published, and
 * inside a reservation.  After a failure nothing has changed.
 * Cost: some 100 ns for a page of 16 tokens.
 */
PKV_API pkv_status pkv_prefix_publish(pkv_prefix *prefix, int32_t group, uint64_t salt,
                                      int32_t behind, const int32_t *tokens, const int32_t *pages,
                                      int64_t n, pkv_error *err);

/*
 * pkv_prefix_clear() - no page can be found any more (new weights): cached ones
 * become blank, used ones are not kept any longer.
 *
 * A sequence that has published something publishes no more: pkv_seq_publish()
 * returns PKV_E_STATE.  But one whose n_published is 0 still can, and what it holds
 * was written before: one that never published, one that was trimmed to less than
 * a page, a fork that is so short.  So close all of these first.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_STATE inside a reservation.  Cost: a pass
 * over all pages.
 */
PKV_API pkv_status pkv_prefix_clear(pkv_prefix *prefix, pkv_error *err);

/*
 * pkv_prefix_events() - the log of what was stored and removed, for routers that
 * send a prompt where its beginning is.  The oldest first; what was told leaves
 * the log.
 *
 * events      [n], receives them.
 * n_out       Receives how many; fewer than n: no more.
 * n_lost_out  Receives how many events behind the last one found no room; told
 *             when the log is empty, and until then nothing newer enters it.  If
 *             any, begin anew with pkv_prefix_page() of every page, outside a
 *             reservation.
 *
 * Returns PKV_OK; PKV_E_INVALID.  Cost: some 10 ns an event.
 */
PKV_API pkv_status pkv_prefix_events(pkv_prefix *prefix, pkv_prefix_event *events, int64_t n,
                                     int64_t *n_out, int64_t *n_lost_out, pkv_error *err);

/*
 * pkv_prefix_page() - what is known of a page: as the event that stored it.
 * kind 0 and id 0: it cannot be found.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_RANGE with rule PAGE.  Cost: a constant.
 */
PKV_API pkv_status pkv_prefix_page(pkv_prefix *prefix, int32_t page, pkv_prefix_event *out,
                                   pkv_error *err);

/*
 * pkv_prefix_twin() - another page of the group with the same content, for a
 * sequence that would rather share it than have its own: requests that run side by
 * side compute the same pages.  Share the twin, put it into the block table, and
 * free the own page, not kept any longer (pkv_pool_share(), pkv_pool_keep(),
 * pkv_pool_free()).
 *
 * out   Receives it: where `page` was published last, the one that was published
 *       first of those that are left.  -1: there is none, or `page` cannot be found.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_RANGE with rule PAGE.  Cost: a constant;
 * inside a reservation, as many steps as the content has pages.
 */
PKV_API pkv_status pkv_prefix_twin(pkv_prefix *prefix, int32_t page, int32_t *out,
                                   pkv_error *err);

/*
 * pkv_prefix_stats() - counts; the caller sets out->struct_size before.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_UNSUPPORTED for struct_size.
 */
PKV_API pkv_status pkv_prefix_stats(pkv_prefix *prefix, pkv_prefix_counts *out, pkv_error *err);

/*
 * pkv_prefix_check() - proves that the index and the pool agree: every page that
 * can be found is kept, is in its place by hash and among its equals, and holds a
 * content of its own id.  PKV_OK; PKV_E_INVALID; PKV_E_CORRUPT with err->what and err->index (the
 * page, or -1).  Cost: a pass over all pages; for tests.
 */
PKV_API pkv_status pkv_prefix_check(pkv_prefix *prefix, pkv_error *err);

#ifdef __cplusplus
}
#endif

#endif /* PAGEDKV_PREFIX_H */
