/*
 * pagedkv/sequences.h - which pages hold the tokens of which sequence.
 *
 * Included by pagedkv/pagedkv.h, whose conventions hold here too.  A table of
 * sequences stands on one pool (pagedkv/pool.h), holds the block tables that
 * the planner reads in place, and moves no bytes: where a page must be copied,
 * it says which.
 *
 * Models whose layers keep different tokens have several groups (full attention
 * and sliding windows): a sequence then has a block table for each, of the same
 * length, whose pages come from the one pool.  A page holds S tokens in all the
 * layers of its group, so groups should have equally many layers.  A layer that
 * reads another layer's cache has no pages (PKV_CACHE_SHARED).
 */
#ifndef PAGEDKV_SEQUENCES_H
#define PAGEDKV_SEQUENCES_H

#include <pagedkv/prefix.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A table of sequences.  Threads, memory and copies of it: as a pool.  It holds
 * the address of its pool, which must outlive it and must not move; the pages
 * that it takes there are its own until the sequence lets go of them.
 */
typedef struct pkv_seqs pkv_seqs;

/*
 * One sequence.  Never 0, and never the same again: a handle that was closed is
 * refused, not mistaken for a later sequence in its place.
 */
typedef int64_t pkv_seq;

typedef struct pkv_seqs_config {
    size_t   struct_size;       /* sizeof(pkv_seqs_config) */
    int64_t  max_seqs;          /* open at a time, 1 .. 2^20 */
    int64_t  max_pages_per_seq; /* 1 .. 2^30 */
    int64_t  page_size;         /* S >= 1, tokens */
    uint32_t flags;             /* 0 */
    int32_t  n_groups;          /* G, 1 .. PKV_MAX_GROUPS; 0 means 1 */
} pkv_seqs_config;

/* What pkv_seq_info() says; all in tokens or pages. */
typedef struct pkv_seq_state {
    size_t         struct_size; /* sizeof(pkv_seq_state) */
    int64_t        n_tokens;    /* length; of a reservation only what is committed */
    int64_t        n_reserved;  /* tokens that the open reservation adds, a prefix's included */
    int64_t        n_pages;     /* entries of each of its block tables */
    int64_t        n_published; /* pages that were published, from the first on */
    int64_t        row;         /* of group 0's table: pkv_batch.table_rows; group g's is row + g */
    const int32_t *pages;       /* [n_pages] of group 0; -1: dropped.  Valid until the next call */
    int64_t        pages_stride; /* entries from a group's table to the next one's */
} pkv_seq_state;

/*
 * pkv_seqs_bytes(), pkv_seqs_init(), pkv_seqs_create(), pkv_seqs_destroy() - as
 * their namesakes of the pool.  4 bytes for each of max_seqs * G *
 * max_pages_per_seq entries, and about 80 for each of max_seqs.
 *
 * Destroying frees the pages of all sequences that are open; a table in the
 * caller's memory is emptied by pkv_seqs_clear().
 */
PKV_API pkv_status pkv_seqs_bytes(const pkv_seqs_config *config, uint64_t *bytes_out,
                                  pkv_error *err);
PKV_API pkv_status pkv_seqs_init(const pkv_seqs_config *config, pkv_pool *pool, void *memory,
                                 uint64_t memory_bytes, pkv_seqs **out, pkv_error *err);
PKV_API pkv_status pkv_seqs_create(const pkv_seqs_config *config, pkv_pool *pool,
                                   const pkv_allocator *allocator, pkv_seqs **out, pkv_error *err);
PKV_API void pkv_seqs_destroy(pkv_seqs *seqs);

/*
 * pkv_seqs_clear() - closes all sequences.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_STATE inside a reservation.  Cost: by the
 * pages that go, and a look at each of max_seqs places.
 */
PKV_API pkv_status pkv_seqs_clear(pkv_seqs *seqs, pkv_error *err);

/*
 * pkv_seq_open() - a new, empty sequence.
 *
 * Returns PKV_OK and *out; PKV_E_NO_MEMORY if max_seqs are open (err->limit);
 * PKV_E_STATE inside a reservation.  Cost: a constant.
 */
PKV_API pkv_status pkv_seq_open(pkv_seqs *seqs, pkv_seq *out, pkv_error *err);

/*
 * pkv_seq_fork() - a sequence with the first n_tokens tokens of another.
 *
 * All pages are shared, the last, partial one too: whoever writes into it first
 * gets a page of its own, and the copy is told by pkv_seqs_reserve().
 *
 * n_tokens  0 .. length of `from`.  Tokens whose pages were dropped are as
 *           absent in the fork.
 *
 * Returns PKV_OK and *out; PKV_E_INVALID for no such handle; PKV_E_RANGE with
 * rule LIMIT for n_tokens; PKV_E_NO_MEMORY; PKV_E_STATE inside a reservation.
 * After a failure nothing has changed.  Cost: about 2 ns a page.
 */
PKV_API pkv_status pkv_seq_fork(pkv_seqs *seqs, pkv_seq from, int64_t n_tokens, pkv_seq *out,
                                pkv_error *err);

/*
 * pkv_seq_trim() - the length becomes n_tokens: rejected tokens go.  Pages
 * behind the last token are freed, the last one first.  Trimming into a page
 * that others share is safe: the next write takes a copy.
 *
 * n_tokens  0 .. the length.
 *
 * Returns as pkv_seq_fork().  Cost: by the pages that go.
 */
PKV_API pkv_status pkv_seq_trim(pkv_seqs *seqs, pkv_seq seq, int64_t n_tokens, pkv_error *err);

/*
 * pkv_seq_drop() - pages of a group that lie wholly inside tokens [from, to) are
 * freed and stand as -1 in its block table: what a sliding window has passed, with
 * `from` behind the attention sinks.  The length stays.  Pages that were
 * dropped already are no error.
 *
 * group  0 .. G - 1, else PKV_E_INVALID.
 *
 * 0 <= from <= to <= length, else PKV_E_RANGE with rule LIMIT.
 * Returns as pkv_seq_fork().  Cost: by the pages between.
 */
PKV_API pkv_status pkv_seq_drop(pkv_seqs *seqs, pkv_seq seq, int32_t group, int64_t from,
                                int64_t to, pkv_error *err);

/* pkv_seq_close() - frees its pages, the last one first.  Returns as pkv_seq_trim(). */
PKV_API pkv_status pkv_seq_close(pkv_seqs *seqs, pkv_seq seq, pkv_error *err);

/*
 * pkv_seqs_reserve() - the pages of a whole step, for all its sequences or for
 * none.
 *
 * seqs_of_step  [n] different open sequences.
 * n_tokens      [n] tokens that the step computes for each, >= 0.
 * hits          [n] pages that each begins with, for empty sequences, as
 *               pkv_prefix_find() told them; n_pages 0: none, and nothing else is
 *               looked at.  NULL: none for all.  Their owners are made here, so
 *               they are never taken for this step's own pages, and are no more
 *               if the reservation fails or is released, their age included.
 * room          Pages that each may grow by later: see pkv_pool_alloc().
 * copies        [max_copies], receives the pages to copy before the step writes:
 *               the partial last page of a sequence, where others own it too or
 *               where it is kept; of each group, so n * G at most.  Where a fork
 *               and its origin both write in one step, both get a copy: who is
 *               left with the page alone is known at the commit.
 * n_copies_out  Receives how many.
 *
 * The block tables hold the new pages at once, so the planner can be called.
 * Then the step runs: copies first.  pkv_seqs_commit() adds the tokens to the
 * lengths; pkv_seqs_release() undoes everything, in the pool too (see
 * pkv_pool_release()).  Between, the other calls that change a sequence or free
 * a page return PKV_E_STATE.
 * It is the pool's own reservation: end it here, not with the pool's calls.
 *
 * Returns
 *     PKV_OK           reserved.
 *     PKV_E_INVALID    a NULL; n, room or max_copies negative; a handle that is
 *                      none, or a hit that is NULL, negative or longer than its
 *                      stride (err->index).
 *     PKV_E_RANGE      n_tokens negative (rule SCHEDULED), a table that would
 *                      exceed max_pages_per_seq or a last page that was dropped
 *                      (rule TABLE), more copies than max_copies (rule CAPACITY),
 *                      a page of a hit that is none (rule PAGE, err->value);
 *                      err->index names the sequence.
 *     PKV_E_NO_PAGES   err->index: the first sequence that has no room.
 *     PKV_E_STATE      a reservation is open, here or in the pool; a sequence is
 *                      named twice, or has tokens and gets a hit; pages were lost
 *                      since its hit was found (find it again), or one of them is
 *                      not kept (rule PAGE, err->value); err->index.
 *
 * pkv_seqs_commit() and pkv_seqs_release() return PKV_OK; PKV_E_INVALID for NULL;
 * PKV_E_STATE if no reservation is open.
 *
 * After a failure nothing has changed, in the pool neither.
 * Cost: that of pkv_pool_alloc(), and some 20 ns a sequence.
 */
PKV_API pkv_status pkv_seqs_reserve(pkv_seqs *seqs, const pkv_seq *seqs_of_step,
                                    const int32_t *n_tokens,
                                    const pkv_prefix_hit *hits, int64_t n, int64_t room,
                                    pkv_page_copy *copies, int64_t max_copies,
                                    int64_t *n_copies_out, pkv_error *err);
PKV_API pkv_status pkv_seqs_commit(pkv_seqs *seqs, pkv_error *err);
PKV_API pkv_status pkv_seqs_release(pkv_seqs *seqs, pkv_error *err);

/*
 * pkv_seq_publish() - the full pages of a sequence's first n_tokens tokens can be
 * found by others from now on, in every group; what was published already, and
 * what it began with, stays so.
 *
 * prefix    An index on the same pool, with the same page size and groups.
 * salt      As for pkv_prefix_find().
 * tokens    [n_tokens], all tokens from the sequence's first one on.  Of pages
 *           that are published already (n_published) only the last one's are
 *           read, and compared.
 * n_tokens  Those that are written, in every layer; 0 .. the length.
 *
 * Pages that a window has dropped are left out.  A sequence that dropped pages of
 * group 0 publishes nothing behind them: nobody could follow to it.
 *
 * Returns PKV_OK; PKV_E_INVALID for no such handle or an index that does not fit;
 * PKV_E_RANGE with rule LIMIT for n_tokens; PKV_E_STATE inside a reservation, or
 * for tokens that are not those that were published before, or where those were
 * cleared meanwhile.  After a failure the pages before the one at fault are
 * published.
 * Cost: some 100 ns for each page that is new, where many come at once; a page at
 * a time some 200, and 450 where it is not in the processor's cache.
 */
PKV_API pkv_status pkv_seq_publish(pkv_seqs *seqs, pkv_seq seq, pkv_prefix *prefix, uint64_t salt,
                                   const int32_t *tokens, int64_t n_tokens, pkv_error *err);

/*
 * pkv_seq_info() - what is known of a sequence; the caller sets out->struct_size before.
 *
 * Returns PKV_OK; PKV_E_INVALID for no such handle; PKV_E_UNSUPPORTED for struct_size.
 */
PKV_API pkv_status pkv_seq_info(const pkv_seqs *seqs, pkv_seq seq, pkv_seq_state *out,
                                pkv_error *err);

/*
 * pkv_seqs_batch() - the planner's view of a step that is reserved: fills
 * *batch_out, and the caller's arrays [n] that it points to.
 *
 * group                      0 .. G - 1: whose block tables.
 * computed, scheduled, rows  Receive the length (with the pages that it begins
 *                            with), the tokens that the step computes and the row
 *                            of the block table of each sequence.
 *
 * The block tables are read in place, so the batch is valid until a sequence
 * changes.  Returns PKV_OK; PKV_E_INVALID with err->index; PKV_E_RANGE for a
 * length over int32.  Cost: some 5 ns a sequence.
 */
PKV_API pkv_status pkv_seqs_batch(const pkv_seqs *seqs, int32_t group,
                                  const pkv_seq *seqs_of_step, int64_t n, int32_t *computed,
                                  int32_t *scheduled, int32_t *rows, pkv_batch *batch_out,
                                  pkv_error *err);

/*
 * pkv_seqs_check() - proves that tables, lengths and the pool's owners agree:
 * pkv_pool_check() and, if `alone`, that no page has an owner but these
 * sequences.  PKV_OK or PKV_E_CORRUPT.  Cost: as pkv_pool_check(), and a pass
 * over all tables for each call; for tests.
 */
PKV_API pkv_status pkv_seqs_check(const pkv_seqs *seqs, int32_t alone, pkv_error *err);

#ifdef __cplusplus
}
#endif

#endif /* PAGEDKV_SEQUENCES_H */
