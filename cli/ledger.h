/*
 * The replay's pages: a pool and sequences of the library, one sequence for each
 * row of the schedule, an index of what can be reused, and beside them what the
 * program itself has noted.
 *
 * The planner reads the library's block tables in place.  The check reads the
 * notes: pages as they were handed out, who has each, and whose tokens a cached
 * one holds, so that a table that changes later, a page that is handed out twice,
 * or one that is reused and was never written, is a difference.
 */
#ifndef PAGEDKV_CLI_LEDGER_H
#define PAGEDKV_CLI_LEDGER_H

#include "cli.h"

/* What the program knows of a page. */
typedef struct ledger_note {
    int32_t n_holders; /* rows that have it */
    int32_t request;   /* whose tokens it holds for others to find; -1: nobody's */
    int32_t index;     /* which of that request's pages it is */
} ledger_note;

typedef struct ledger_config {
    int32_t allocator; /* PKV_POOL_* */
    bool    prefix_cache;
    int64_t page_size;
    int64_t num_pages;
    int64_t n_rows;
    int64_t width; /* most pages of a row */
    /* A cached page was taken for others: its note as it was. */
    void (*evicted)(void *user, int32_t page, const ledger_note *note);
    void *user;
} ledger_config;

typedef struct ledger {
    ledger_config config;
    pkv_pool     *pool;
    pkv_seqs     *seqs;
    pkv_prefix   *prefix;    /* NULL: nothing is reused */
    pkv_seq      *sequences; /* [n_rows] 0: none */
    pkv_seq      *running;   /* [n_rows] for ledger_batch(): the rows that have one */
    int32_t      *computed;  /* [n_rows] as `running` */
    int32_t      *scheduled; /* [n_rows] as `running` */
    int32_t      *places;    /* [n_rows] as `running`: row of the library's table */
    int32_t      *noted;     /* [n_rows, width] pages as they were handed out */
    int32_t      *n_noted;   /* [n_rows] */
    int32_t      *found;     /* [width] pages that a prompt begins with */
    ledger_note  *notes;     /* [num_pages] */
    int64_t       n_held;
    int64_t       n_held_peak;
    int64_t       n_copies;     /* pages that the library wanted copied */
    int64_t       least_extent; /* smallest that the largest extent ever was */
} ledger;

/* Adds what ledger_init() will allocate to a sum of bytes; false if it is too much. */
bool ledger_add_bytes(const ledger_config *c, int64_t *sum_bytes);

/* An exit status; ledger_free() in any case. */
int  ledger_init(ledger *p, const ledger_config *c);
void ledger_free(ledger *p);

/*
 * A new sequence for a row that has none, with pages for n_tokens: all of them,
 * or none where the pool has too few (*got = false).  With the prefix cache its
 * first tokens, known[0 .. n_known - 1], may be in pages already: *n_hit of them.
 * An exit status: CLI_DIFFERENCE if a page is none, or not to be had.
 */
int ledger_take(ledger *p, int64_t row, int64_t n_tokens, const int32_t *known, int64_t n_known,
                int64_t *n_hit, bool *got);

/* One token more for each of n rows, or for none of them (*got = false). */
int ledger_grow(ledger *p, const int32_t *rows, int64_t n, bool *got);

/* Tokens that a row has room for. */
int64_t ledger_room(const ledger *p, int64_t row);

/*
 * The full pages of a row's first n_tokens tokens, which are written, can be
 * found from now on.  Only tokens from the last page before ledger_published() on
 * are read.
 */
int ledger_publish(ledger *p, int64_t row, int64_t request, const int32_t *tokens,
                   int64_t n_tokens);
int64_t ledger_published(const ledger *p, int64_t row);

/* Closes a row's sequence, which gives its pages back. */
int ledger_give(ledger *p, int64_t row);

/* What was noted of a row: its pages, in order. */
const int32_t *ledger_of(const ledger *p, int64_t row, int64_t *n_pages);

/* Holds the page tokens that can be found, though no row has it? */
bool ledger_is_cached(const ledger *p, int32_t page);

/* Has only this row the page, and are its tokens gone with the row? */
bool ledger_is_last(const ledger *p, int32_t page);

/*
 * The planner's view of a step: the rows up to n_rows that have a sequence, in
 * order, with what the schedule says of them.  Valid until pages are taken or
 * given.
 */
int ledger_batch(ledger *p, const int32_t *computed, const int32_t *scheduled, int64_t n_rows,
                pkv_batch *out);

/* The pool's counts. */
int ledger_counts(const ledger *p, pkv_pool_counts *out);

/* Follows the largest extent: after a step's admissions. */
int ledger_measure(ledger *p);

/*
 * At the end: the library's own checks of its tables, of the index and of the
 * pool, and do the pool's counts agree with the notes?
 */
int ledger_check(const ledger *p, const pkv_pool_counts *counts);

#endif
