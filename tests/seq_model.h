/*
 * A model of pagedkv/sequences.h that writes.  Each slot of each page of each
 * group holds a number: a hash of all tokens up to the one that was written
 * there.  So whoever reads a slot knows whether it holds what a writer of its own
 * beginning would have put there, whoever wrote it: the sequence, the one that it
 * was forked from, or a stranger whose pages the prefix index found.
 *
 * seq_model.c has the world and what is proved of it after every operation,
 * seq_step.c the steps, seq_ops.c all other operations, and random ones.
 */
#ifndef PAGEDKV_TESTS_SEQ_MODEL_H
#define PAGEDKV_TESTS_SEQ_MODEL_H

#include "support.h"

enum {
    SEQ_MAX = 64,     /* sequences */
    SEQ_GROUPS = 3,   /* most groups */
    SEQ_TOKENS = 640, /* most tokens of one */
    SEQ_PAGES = 40,   /* most pages of one */
    SEQ_PROMPTS = 9
};

/* A number in [min, max]. */
typedef int64_t (*seq_draw)(void *user, int64_t min, int64_t max);

typedef struct seq_shape {
    int64_t          n_pages, page_size, max_seqs;
    int32_t          n_groups, allocator;
    bool             bad_hash;           /* all contents collide */
    pkv_prefix_group groups[SEQ_GROUPS]; /* of the index */
} seq_shape;

typedef struct seq_model {
    pkv_seq  handle; /* 0: not open */
    int64_t  n_tokens, n_published;
    int64_t  prompt;
    uint64_t salt;
    int32_t  token[SEQ_TOKENS];
    uint64_t value[SEQ_GROUPS][SEQ_TOKENS]; /* what the slots must hold */
    bool     gone[SEQ_GROUPS][SEQ_PAGES];   /* was dropped */
} seq_model;

/* One of the three parts, in memory of its own, and two copies of that. */
typedef struct seq_part {
    unsigned char *memory, *saved[2];
    uint64_t       bytes;
} seq_part;

enum { SEQ_POOL, SEQ_TABLE, SEQ_INDEX, SEQ_PARTS };

typedef enum seq_kind {
    SEQ_OPEN, SEQ_FORK, SEQ_TRIM, SEQ_DROP, SEQ_CLOSE, SEQ_PUBLISH, SEQ_KEEP, SEQ_REFUSED, SEQ_STEP,
    SEQ_KINDS
} seq_kind;

typedef struct seq_counts {
    int64_t n_of_kind[SEQ_KINDS];
    int64_t n_commits, n_releases, n_no_pages, n_out_of_range;
    int64_t n_copies, n_hits, n_hit_pages, n_published, n_evictions;
} seq_counts;

typedef struct seq_world {
    seq_shape   shape;
    int64_t     width; /* max_pages_per_seq */
    seq_draw    draw;
    void       *user;
    seq_part    part[SEQ_PARTS];
    pkv_pool   *pool;
    pkv_seqs   *seqs;
    pkv_prefix *index;
    seq_model  *seq;                  /* [max_seqs] */
    pkv_seq     closed;               /* a handle that is none any more */
    uint64_t   *content[SEQ_GROUPS];  /* [n_pages * S] */
    bool       *kept;                 /* [n_pages] */
    uint64_t   *told, *told_id;       /* [n_pages * S], [n_pages]: when it was published */
    int32_t    *told_group;           /* [n_pages] */
    int64_t    *refs, *role;          /* [n_pages] for seq_world_check() */
    int32_t    *order[2];             /* [n_pages] for seq_expect_untouched() */
    int32_t    *columns;              /* [3, n_pages * S] slices */
    uint64_t   *fresh;                /* [n_pages * S] what the rows of a step hold */
    seq_counts  counts;
} seq_world;

void seq_world_init(seq_world *w, const seq_shape *shape, seq_draw draw, void *user);
void seq_world_free(seq_world *w); /* and nothing may be left in the pool */

/* Every sequence reads back what it must, and pool, table and index agree with it. */
void seq_world_check(seq_world *w);

/* Copies of pool, table and index, and back.  `which`: 0 or 1. */
void seq_world_save(seq_world *w, int which);
void seq_world_restore(seq_world *w, int which);

/* Not one byte differs from that copy. */
void seq_expect_same(const seq_world *w, int which);

/*
 * Nothing that can be seen differs from copy 0: tables, counts, what can be found,
 * and which pages are handed out next, evicted ones included.
 */
void seq_expect_untouched(seq_world *w);

/* The t-th token of a prompt; prompts begin alike. */
int32_t seq_prompt_token(const seq_world *w, int64_t prompt, int64_t t);

/* What token t is from now on, and so what its slots must hold. */
void seq_put_token(const seq_world *w, seq_model *m, int64_t t, int32_t token);

static inline int64_t seq_pages_of(const seq_world *w, int64_t n_tokens)
{
    return (n_tokens + w->shape.page_size - 1) / w->shape.page_size;
}

/* Most tokens that one sequence may have. */
static inline int64_t seq_longest(const seq_world *w)
{
    return w->width * w->shape.page_size;
}

/* What pkv_seq_info() says. */
pkv_seq_state seq_info(const seq_world *w, const seq_model *m);

/* What pkv_pool_stats() says. */
pkv_pool_counts seq_pool_counts(const seq_world *w);

/* Page i of a group. */
int32_t seq_page(const seq_world *w, const seq_model *m, int32_t group, int64_t i);

/* ---- operations that must succeed (seq_ops.c) ------------------------------ */

seq_model *seq_open(seq_world *w, int64_t prompt, uint64_t salt);
seq_model *seq_fork(seq_world *w, const seq_model *from, int64_t n_tokens);
void       seq_trim(seq_world *w, seq_model *m, int64_t n_tokens);
void       seq_drop(seq_world *w, seq_model *m, int32_t group, int64_t from, int64_t to);
void       seq_close(seq_world *w, seq_model *m);
void       seq_publish(seq_world *w, seq_model *m, int64_t n_tokens);

/* One random operation, and all proofs. */
void seq_world_step(seq_world *w);

/* Every call that changes a sequence is refused inside a reservation, and changes nothing. */
void seq_expect_closed_shop(seq_world *w, const seq_model *m);

/* ---- steps (seq_step.c) ---------------------------------------------------- */

typedef struct seq_step {
    int64_t        n, room, max_copies, n_copies;
    seq_model     *of[SEQ_MAX];
    pkv_seq        handles[SEQ_MAX];
    int32_t        n_tokens[SEQ_MAX];
    pkv_prefix_hit prefixes[SEQ_MAX];
    int32_t        found[SEQ_MAX][SEQ_GROUPS * SEQ_PAGES];
    pkv_page_copy  copies[SEQ_MAX * SEQ_GROUPS];
    /* What must come of it. */
    pkv_status     status;
    int32_t        rule;
    int64_t        index, n_expected;
    pkv_page_copy  expected[SEQ_MAX * SEQ_GROUPS]; /* dst is not known */
} seq_step;

void seq_step_init(seq_step *st);

/* The sequence goes on with n_tokens tokens of its prompt. */
void seq_step_add(seq_world *w, seq_step *st, seq_model *m, int64_t n_tokens);

/* An empty sequence's first n_tokens tokens, as many of them as can be found; pages of the hit. */
int64_t seq_step_begin(seq_world *w, seq_step *st, seq_model *m, int64_t n_tokens);

/* Reserves, and compares with what must come of it; a failure has changed nothing. */
pkv_status seq_step_reserve(seq_world *w, seq_step *st);

/* Copies, writes by the planner's slices in each group, commits. */
void seq_step_commit(seq_world *w, seq_step *st, int64_t max_slice_tokens);

/* Undoes it, and nothing is left of it. */
void seq_step_release(seq_world *w, seq_step *st);

/* A step of one sequence, which must succeed; its copies. */
int64_t seq_grow(seq_world *w, seq_model *m, int64_t n_tokens);

/* A new sequence of a prompt, without salt, after such a step. */
seq_model *seq_grown(seq_world *w, int64_t prompt, int64_t n_tokens);

#endif
