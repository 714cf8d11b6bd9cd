/*
 * The replay's pages: a pool and sequences of the library, one sequence for each
 * row of the schedule, and beside them what the program itself has noted.
 *
 * The planner reads the library's block tables in place.  The check reads the
 * notes: pages as they were handed out, and who has each, so that a table that
 * changes later, or a page that is handed out twice, is a difference.
 */
#ifndef PAGEDKV_CLI_LEDGER_H
#define PAGEDKV_CLI_LEDGER_H

#include "cli.h"

typedef struct ledger_config {
    int32_t allocator; /* PKV_POOL_* */
    int64_t page_size;
    int64_t num_pages;
    int64_t n_rows;
    int64_t width; /* most pages of a row */
} ledger_config;

typedef struct ledger {
    ledger_config config;
    pkv_pool     *pool;
    pkv_seqs     *seqs;
    pkv_seq      *sequences; /* [n_rows] 0: none */
    pkv_seq      *running;   /* [n_rows] for ledger_batch(): the rows that have one */
    int32_t      *computed;  /* [n_rows] as `running` */
    int32_t      *scheduled; /* [n_rows] as `running` */
    int32_t      *places;    /* [n_rows] as `running`: row of the library's table */
    int32_t      *noted;     /* [n_rows, width] pages as they were handed out */
    int32_t      *n_noted;   /* [n_rows] */
    int32_t      *holders;   /* [num_pages] row that has the page, -1: none */
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
 * or none where the pool has too few (*got = false).  An exit status:
 * CLI_DIFFERENCE if a page is none, or another row's.
 */
int ledger_take(ledger *p, int64_t row, int64_t n_tokens, bool *got);

/* Closes a row's sequence, which gives its pages back. */
int ledger_give(ledger *p, int64_t row);

/* What was noted of a row: its pages, in order. */
const int32_t *ledger_of(const ledger *p, int64_t row, int64_t *n_pages);

/*
 * The planner's view of a step: the rows up to n_rows that have a sequence, in
 * order, with what the schedule says of them.  Valid until ledger_take() or
 * ledger_give().
 */
int ledger_batch(ledger *p, const int32_t *computed, const int32_t *scheduled, int64_t n_rows,
                pkv_batch *out);

/* The pool's counts. */
int ledger_counts(const ledger *p, pkv_pool_counts *out);

/* Follows the largest extent: after a step's admissions. */
int ledger_measure(ledger *p);

/*
 * At the end: the library's own checks of its tables and of the pool, and do
 * the pool's counts agree with the notes?
 */
int ledger_check(const ledger *p, const pkv_pool_counts *counts);

#endif
