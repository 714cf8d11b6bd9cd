/*
 * What the cases convert, gather, layout, copy-pages and swap, and update's
 * `layers`, share: the library's calls beside plain copies and Python, in one
 * job.  A work brings what is its own as functions.
 */
#ifndef PAGEDKV_CLI_BENCH_WORK_H
#define PAGEDKV_CLI_BENCH_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "bench.h"
#include "bench_memory.h"
#include "bench_peers.h"
#include "limit.h"

typedef struct bench_work {
    const bench_options *options;
    const bench_memory  *memory;
    bench_peers         *peers;
    int                  threads;
    const char          *impls[2]; /* the library's own; the second one may be NULL */
    bench_row            row;      /* what all rows have in common */
    int64_t              moved_bytes; /* read and written by one call */
    bool                 from_cache;  /* plain copies go the same way: out of the cache memory */
    const limit_row     *rows;        /* the same as plain copies, since draw(); NULL: no such */
    int64_t              n_rows;
    bool                 takes_peer[BENCH_N_PEERS];
    int64_t              source_next_bytes;
    uint64_t             random;
    void                *ctx;
    int (*draw)(void *ctx);                   /* what the next run moves; exit status */
    void (*touch)(void *ctx);                 /* brings its plan to the caches; may be NULL */
    int (*run)(void *ctx, int impl);          /* timed; exit status */
    int (*check)(void *ctx, const char *who); /* after a run; exit status */
    double (*run_peer)(void *ctx, int peer);  /* ns; 0 where it has failed */
} bench_work;

/* One thing to time, in a list. */
typedef struct bench_item {
    int (*run)(const struct bench_item *item, const bench_options *options,
               const bench_memory *memory, bench_peers *peers, int64_t end_ns,
               bench_results *results);
    const char *name; /* for the progress line */
    const void *kind;
    unsigned    layout;
    int64_t     tokens;
    int         threads;
    bool        takes_peers;
    int         fills; /* where it differs from the item before, the memory is filled anew */
} bench_item;

enum { BENCH_MAX_ITEMS = 256 };

/* Append what the options ask for; the new number of items. */
int bench_flow_items(const bench_options *options, bench_item *items, int n);
int bench_layers_items(const bench_options *options, bench_item *items, int n);
int bench_pages_items(const bench_options *options, bench_item *items, int n);

/* Is the pattern to be timed? */
bool bench_work_wants(const bench_options *options, const char *pattern);

/* So many bytes of the source memory, another place every time. */
char *bench_work_source(bench_work *work, int64_t bytes);

/* Times it until end_ns and appends its rows.  Exit status. */
int bench_work_run(bench_work *work, int64_t end_ns, bench_results *results);

#endif
