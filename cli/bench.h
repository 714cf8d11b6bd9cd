/* What the parts of `pagedkv bench` share: options, result rows, random numbers. */
#ifndef PAGEDKV_CLI_BENCH_H
#define PAGEDKV_CLI_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "bench_machine.h"
#include "cli.h"

/* Choices are sets; an empty one stands for the default grid. */
enum { BENCH_COMBINED = 1, BENCH_NHD = 2, BENCH_HND = 4 };
enum { BENCH_COLD = 1, BENCH_WARM = 2 };
enum { BENCH_HUGE_OFF = 1, BENCH_HUGE_ON = 2 };
enum { BENCH_PEERS_AUTO = 1, BENCH_PEERS_OFF = 2 };
enum { BENCH_CPU = 1, BENCH_CUDA = 2 };

typedef struct bench_options {
    const char   *json_path;  /* NULL: none */
    const char   *isa;        /* NULL: the chosen one; "all" */
    const char   *pattern;    /* NULL: all */
    int64_t       threads;    /* 0: one, and all */
    int64_t       page_size;  /* 0: the pattern's own */
    int64_t       num_kv_heads;
    int64_t       head_dim;
    pkv_dtype     dtype;
    int64_t       rounds;     /* 0: as many as the time allows */
    int64_t       seconds;
    unsigned      layouts;    /* BENCH_COMBINED, ... */
    unsigned      sources;    /* BENCH_COLD, ... */
    unsigned      huge_pages; /* BENCH_HUGE_OFF, ... */
    unsigned      peers;      /* BENCH_PEERS_AUTO or _OFF; 0: auto, but off with quick */
    unsigned      backend;    /* BENCH_CPU or _CUDA; 0: CPU */
    bool          quick;
    bool          quiet;
    bool          run_update;
    bool          run_plan;
    bool          run_pool;
    bool          run_convert;
    bool          run_gather;
    bool          run_layout;
    bool          run_copy_pages;
    bool          run_swap;
    bench_machine machine;
} bench_options;

/* One row of results.  NULL text and negative numbers are JSON's null. */
typedef struct bench_row {
    const char *backend;
    const char *device;
    const char *launch; /* of a call on a device: "graph" or "stream" */
    const char *impl;
    const char *case_name;
    const char *pattern;
    const char *plan;
    const char *layout;
    const char *source;
    const char *src_dtype; /* of the new K/V, or of the rows of a gather */
    const char *dtype;     /* of the cache */
    const char *scales;
    const char *isa;
    const char *limit_way;
    const char *pattern_way;
    int64_t     page_size;
    int64_t     num_kv_heads;
    int64_t     head_dim;
    int64_t     requests;
    int64_t     tokens;
    int64_t     num_slices;
    int64_t     padded_num_slices; /* N; on a device only */
    int64_t     nodes;             /* calls of a graph */
    int64_t     pages; /* of the pool, or of a call */
    int64_t     layers;
    int64_t     threads;
    int64_t     rounds;
    int64_t     huge_pages; /* 1, 0: what the system gave */
    double      ns_median;
    double      ns_p25;
    double      ns_p75;
    double      ns_per_slice;
    double      ns_per_page;
    double      bytes_per_s;
    double      limit_bytes_per_s;
    double      limit_fraction;
    double      pattern_bytes_per_s;
    double      pattern_fraction;
    double      memcpy_fraction;
    double      numpy_fraction;
    double      index_copy_fraction;
    double      calls_fraction;
    double      floor_ns;
    double      unpadded_fraction;
    double      large_copy_fraction;
    double      linked_list_fraction;
    double      adjacent_fraction;
    double      used_fraction;
} bench_row;

/* Everything is null; the plain defaults for a new row. */
extern const bench_row bench_row_null;

typedef struct bench_results {
    bench_row *rows;
    int64_t    n_rows;
    int64_t    capacity;
    char       device[64]; /* name of the GPU that rows are of */
} bench_results;

/* Appends a row.  Exit status. */
int bench_add(bench_results *results, const bench_row *row);

/* Three digits and a unit; three digits, or a dash. */
typedef struct bench_text {
    char s[16];
} bench_text;

bench_text bench_time_text(double ns);
bench_text bench_fraction_text(double fraction);

/* What the cases convert to swap have, and update's layers; in bench_table_moves.c. */
void bench_print_moves(const bench_results *results, FILE *out);

/* Rows of a device, in bench_cuda.c. */
void bench_print_cuda(const bench_results *results, FILE *out);

void bench_print_tables(const bench_options *options, const bench_results *results, FILE *out);

/* An array of objects; NULL if memory ran out. */
json_t *bench_rows_to_json(const bench_results *results);

/* One line on a terminal's standard error, in the place of the last; NULL clears it. */
void bench_progress(const bench_options *options, const char *text);

/* The cases.  Each appends its rows and is done at about deadline_ns.  Exit status. */
int bench_update(const bench_options *options, int64_t deadline_ns, bench_results *results);
int bench_plan(const bench_options *options, int64_t deadline_ns, bench_results *results);
int bench_pool(const bench_options *options, int64_t deadline_ns, bench_results *results);
/* convert, gather, layout, copy-pages and swap; update's layers. */
int bench_moves(const bench_options *options, int64_t deadline_ns, bench_results *results);
/* --backend cuda: update, convert, copy-pages and plan. */
int bench_cuda(const bench_options *options, int64_t deadline_ns, bench_results *results);

#endif
