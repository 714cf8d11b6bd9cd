/* What the files of the sequences share. */
#ifndef PAGEDKV_SRC_SEQ_STATE_H
#define PAGEDKV_SRC_SEQ_STATE_H

#include "internal.h"
#include "pool_pages.h"

enum { SEQS_MAGIC = 0x71736b70, SEQ_DROPPED = -1 };

/* One place for a sequence; free places are linked. */
typedef struct pkv_i_seq {
    int64_t n_tokens;
    int64_t n_prefix;     /* tokens of the pages that the open reservation begins it with */
    int64_t n_reserved;   /* tokens that the step computes */
    int64_t n_pages;      /* entries of its rows */
    int64_t pages_before; /* n_pages when the reservation began */
    int64_t n_published;
    int32_t generation;   /* odd: open */
    int32_t next_free;    /* of a free place; -1: the last */
    bool    in_step;
} pkv_i_seq;

typedef struct pkv_i_seqs_layout {
    uint64_t seqs, step, replaced, table, total;
} pkv_i_seqs_layout;

struct pkv_seqs {
    uint32_t          magic;
    bool              reserving;
    pkv_i_seqs_layout at;
    pkv_pool         *pool;
    int64_t           max_seqs, n_groups, width, page_size;
    int64_t           n_open, n_step; /* n_step: places in the step's list */
    int32_t           first_free;
    pkv_allocator     memory; /* of a created table */
};

static inline void *pkv_i_seqs_at(const pkv_seqs *s, uint64_t offset)
{
    return (char *)(uintptr_t)s + offset;
}

static inline pkv_i_seq *pkv_i_seqs_seqs(const pkv_seqs *s)
{
    return pkv_i_seqs_at(s, s->at.seqs);
}

/* Places of the open reservation. */
static inline int32_t *pkv_i_seqs_step(const pkv_seqs *s)
{
    return pkv_i_seqs_at(s, s->at.step);
}

static inline int32_t *pkv_i_seqs_row(const pkv_seqs *s, int64_t place, int64_t group)
{
    return (int32_t *)pkv_i_seqs_at(s, s->at.table) + (place * s->n_groups + group) * s->width;
}

/* [G] page that a copy of its own has replaced in the last entry of each row, or -1. */
static inline int32_t *pkv_i_seqs_replaced(const pkv_seqs *s, int64_t place)
{
    return (int32_t *)pkv_i_seqs_at(s, s->at.replaced) + place * s->n_groups;
}

/* The place of an open sequence, or -1. */
int64_t pkv_i_seqs_place(const pkv_seqs *s, pkv_seq seq);

/* Is there a table, and is it reserving or not? */
pkv_status pkv_i_seqs_check_state(const pkv_seqs *s, bool reserving, pkv_error *err);

pkv_status pkv_i_seqs_fail_handle(int64_t index, pkv_error *err);

/* The checks of a call that changes one sequence outside a reservation. */
pkv_status pkv_i_seqs_find(const pkv_seqs *s, pkv_seq seq, int64_t *place, pkv_error *err);

/* One owner more for each entry that has a page; where it fails, for the first *n_done. */
pkv_status pkv_i_seqs_share(pkv_pool *pool, const int32_t *row, int64_t n, int64_t *n_done,
                            pkv_error *err);

/* Pages that n_tokens tokens take. */
static inline int64_t pkv_i_seqs_pages_of(const pkv_seqs *s, int64_t n_tokens)
{
    return n_tokens / s->page_size + (n_tokens % s->page_size != 0);
}

#endif
