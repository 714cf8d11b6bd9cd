/*
 * pagedkv/pool.h - who owns which page of a cache.
 *
 * Included by pagedkv/pagedkv.h, whose conventions hold here too.  A pool knows
 * page numbers and nothing of their bytes: it works without any cache, and the
 * planner and the update work without a pool.
 */
#ifndef PAGEDKV_POOL_H
#define PAGEDKV_POOL_H

#include <pagedkv/pagedkv.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A pool of P pages, numbered 0 .. P - 1.  A page is in one of three states:
 *
 *     used     at least one owner: its reference count says how many
 *     cached   no owner, but its content was worth keeping (pkv_pool_keep()):
 *              sharing it again revives it, allocation takes it when no blank
 *              page is left, the one that was freed first before all others
 *              (PKV_POOL_LIFO and PKV_POOL_FIFO: in the order of their queue)
 *     blank    no owner and nothing to keep
 *
 * Threads: calls on one pool must not run at the same time, but for those that
 * take it const, which may run beside each other.  Different pools are
 * independent.
 *
 * Memory: all in one block, which holds no pointer into itself but the
 * allocator's: a pool that was made in the caller's memory can be copied byte
 * for byte, and the copy is a pool.
 */
typedef struct pkv_pool pkv_pool;

/* How allocation chooses among blank pages: pkv_pool_config.allocator. */
enum {
    /*
     * Pages that follow one another, behind the sequence's last page where that
     * is blank, and with room to grow where it is a new one.
     */
    PKV_POOL_EXTENT = 0,
    /*
     * One queue of all pages without an owner, cached or blank, and no look at
     * where they lie.  A page enters it when its last owner leaves, and again
     * when it is forgotten.  A fresh pool hands out 0, 1, 2, ...
     */
    PKV_POOL_LIFO   = 1, /* the page that entered last first */
    PKV_POOL_FIFO   = 2  /* the page that entered first first, as vLLM's queue */
};

typedef struct pkv_pool_config {
    size_t   struct_size; /* sizeof(pkv_pool_config) */
    int64_t  n_pages;     /* P, 1 .. 2^30 */
    int32_t  allocator;   /* PKV_POOL_* */
    uint32_t flags;       /* 0 */
} pkv_pool_config;

/* The caller's memory functions, for pkv_pool_create(). */
typedef struct pkv_allocator {
    size_t struct_size;                                      /* sizeof(pkv_allocator) */
    void *(*alloc)(void *user, size_t bytes, size_t align);  /* NULL: there is none */
    void (*release)(void *user, void *memory, size_t bytes);
    void *user; /* handed to both */
} pkv_allocator;

/* What pkv_pool_stats() fills; counts are of pages. */
typedef struct pkv_pool_counts {
    size_t  struct_size; /* sizeof(pkv_pool_counts) */
    int64_t n_pages;
    int64_t n_blank;
    int64_t n_cached;
    int64_t n_used;      /* blank + cached + used = n_pages */
    int64_t n_shared;    /* used ones with two owners or more */
    int64_t n_used_peak; /* most that were ever used at a time, undone reservations left out */
    int64_t n_evictions; /* cached pages that allocation took */
    int64_t largest_extent; /* blank pages that follow one another */
} pkv_pool_counts;

/*
 * pkv_pool_bytes() - how much memory a pool takes: 40 to 57 bytes a page, and
 * up to 1000 whatever their number; a multiple of 64.
 *
 * Returns PKV_OK and *bytes_out; PKV_E_INVALID for a NULL, an allocator that is
 * none or n_pages out of range; PKV_E_UNSUPPORTED for struct_size or flags.
 */
PKV_API pkv_status pkv_pool_bytes(const pkv_pool_config *config, uint64_t *bytes_out,
                                  pkv_error *err);

/*
 * pkv_pool_init() - a pool in the caller's memory.
 *
 * memory        At least pkv_pool_bytes(), aligned to 64 bytes; the pool's until
 *               the caller takes it back, for which there is no call.
 * memory_bytes  Its size.
 * out           Receives the pool, at `memory`.
 *
 * All pages are blank.  Returns as pkv_pool_bytes(); PKV_E_INVALID too for
 * memory that is too small or not aligned.
 * Cost: one pass over the bookkeeping.
 */
PKV_API pkv_status pkv_pool_init(const pkv_pool_config *config, void *memory, uint64_t memory_bytes,
                                 pkv_pool **out, pkv_error *err);

/*
 * pkv_pool_create() - the same in memory from `allocator`, which is copied;
 * NULL: aligned_alloc() and free().  Returns as pkv_pool_init(); PKV_E_INVALID
 * too for a function of the allocator that is NULL or memory from it that is
 * not aligned (which it gets back), PKV_E_NO_MEMORY where it gives none.
 */
PKV_API pkv_status pkv_pool_create(const pkv_pool_config *config, const pkv_allocator *allocator,
                                   pkv_pool **out, pkv_error *err);

/*
 * pkv_pool_destroy() - gives the memory of a created pool back.  NULL does
 * nothing, nor does a pool in the caller's memory.
 */
PKV_API void pkv_pool_destroy(pkv_pool *pool);

/*
 * pkv_pool_alloc() - n pages with one owner each.
 *
 * n        >= 0.
 * after    The last page that the sequence has, or -1 for a new one.  With
 *          PKV_POOL_EXTENT the blank pages right behind it are taken first.
 * room     Pages that the sequence may grow by later, >= 0: a place with so
 *          many blank ones behind (512 - n / 2 at most) is preferred.  Not
 *          reserved.  Only PKV_POOL_EXTENT looks at after and room.
 * pages    [n], receives them in the order in which the sequence should use
 *          them.
 *
 * Returns PKV_OK; PKV_E_INVALID (here and below: a NULL, a negative number);
 * PKV_E_RANGE with rule PAGE for `after`, its value in err->value;
 * PKV_E_NO_PAGES if blank and cached pages together are fewer than n
 * (err->value; err->limit: n).  After a failure nothing has changed.
 * Cost: about 3 ns a page in runs; to find a run, some 50 ns, and more where
 * blank pages are scattered.  A page that is evicted costs some 10 ns, also where
 * they lie in a random order among a million.
 */
PKV_API pkv_status pkv_pool_alloc(pkv_pool *pool, int64_t n, int32_t after, int64_t room,
                                  int32_t *pages, pkv_error *err);

/*
 * pkv_pool_share() - one owner more for each page.  A cached page is used again.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_RANGE with rule PAGE and the index of a
 * page that is none, and PKV_E_STATE with the index of a blank one or of one
 * that n more owners would bring above 2^31 - 1.  After a failure nothing has
 * changed.
 * Cost: some 3 ns a page, 5 for a cached one; in a random order among a million,
 * where each waits for memory twice, up to 80.
 */
PKV_API pkv_status pkv_pool_share(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err);

/*
 * pkv_pool_free() - one owner less for each page, in order.  A page may be
 * named as often as it has owners.  Without an owner it is cached if it was
 * kept, else blank.  To have a sequence's first pages outlive its last ones,
 * name the last ones first.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_RANGE with rule PAGE and the index of a
 * page that is none; PKV_E_STATE with the index of a page that has no owner
 * (left), or inside a reservation.  After a failure nothing has changed.
 * Cost: some 3 ns a page that has owners left, 5 to 15 for one that has none; in a
 * random order among a million up to 200.
 */
PKV_API pkv_status pkv_pool_free(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err);

/*
 * pkv_pool_keep() - is the content of these used pages worth keeping (keep not
 * 0) when their last owner leaves?  Those of pkv_pool_alloc() are not; one that
 * is cached and shared again still is.  A kept page is not written by sequences
 * (pagedkv/sequences.h), and an owner of one's own pins it: only pages without
 * an owner are evicted.
 *
 * Returns as pkv_pool_free().  Cost: some 2 ns a page; in a random order among a
 * million some 50.
 */
PKV_API pkv_status pkv_pool_keep(pkv_pool *pool, const int32_t *pages, int64_t n, int32_t keep,
                                 pkv_error *err);

/*
 * pkv_pool_forget() - cached pages become blank: their content is of no use any
 * more.  PKV_E_STATE with the index of a page that is not cached, or named
 * before, or inside a reservation.  Else as pkv_pool_free().  Cost: some 7 ns a
 * page; in a random order among a million some 100.
 */
PKV_API pkv_status pkv_pool_forget(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err);

/*
 * pkv_pool_lost() - the pages whose kept content is gone: evicted, forgotten, or
 * not kept any longer.  The oldest first, each once, from the list that all such
 * pages enter; what was told leaves it.  An index of contents calls it before it
 * relies on what it knows, and before it keeps pages.  Evictions of an open
 * reservation enter the list when it is committed.
 *
 * pages  [n], receives them.   n_out  Receives how many; fewer than n: no more.
 *
 * Returns PKV_OK; PKV_E_INVALID.  Cost: 2 ns a page.
 */
PKV_API pkv_status pkv_pool_lost(pkv_pool *pool, int32_t *pages, int64_t n, int64_t *n_out,
                                 pkv_error *err);

/*
 * Reservations: all pages of a step or none.
 *
 * pkv_pool_reserve() opens one.  Until it ends, pkv_pool_alloc() and
 * pkv_pool_share() are remembered; pkv_pool_free(), _keep() and _forget() are
 * refused with PKV_E_STATE.  pkv_pool_commit() keeps what was done.
 * pkv_pool_release() undoes all of it: every byte of the pool that decides
 * anything is as before, the order of pages included, and evicted pages are
 * cached again (so nobody may have written to them).
 *
 * Each returns PKV_OK; PKV_E_INVALID for NULL; PKV_E_STATE if one is open
 * (reserve) or none is (commit, release).
 * Cost: 2 ns a page that is undone, 1 ns to commit one; to reserve, 2 bytes are
 * copied for every 1024 pages of the pool.
 */
PKV_API pkv_status pkv_pool_reserve(pkv_pool *pool, pkv_error *err);
PKV_API pkv_status pkv_pool_commit(pkv_pool *pool, pkv_error *err);
PKV_API pkv_status pkv_pool_release(pkv_pool *pool, pkv_error *err);

/* pkv_pool_owners() - the reference count of a page; -1 for a page that is none. */
PKV_API int64_t pkv_pool_owners(const pkv_pool *pool, int32_t page);

/*
 * pkv_pool_stats() - counts; the caller sets out->struct_size before.
 * Cost: the largest extent takes a pass over one bit a page (PKV_POOL_LIFO and
 * PKV_POOL_FIFO: over 8 bytes a page).
 *
 * Returns PKV_OK; PKV_E_INVALID for a NULL; PKV_E_UNSUPPORTED for struct_size.
 */
PKV_API pkv_status pkv_pool_stats(const pkv_pool *pool, pkv_pool_counts *out, pkv_error *err);

/*
 * pkv_pool_check() - walks every page and proves that the states, counts and
 * queues agree.  PKV_OK; PKV_E_INVALID for NULL; PKV_E_CORRUPT with err->what
 * and err->index (the page, or -1).  Cost: a pass over the bookkeeping; for tests.
 */
PKV_API pkv_status pkv_pool_check(const pkv_pool *pool, pkv_error *err);

#ifdef __cplusplus
}
#endif

#endif /* PAGEDKV_POOL_H */
