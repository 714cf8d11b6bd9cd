/*
 * `pagedkv bench --backend cuda`: calls of the library beside copies within the device.
 * Each contender is a graph of many calls, one after another, between two events; a call's
 * time is a node's.  Rounds are those of bench_run.h.
 */
#ifndef PAGEDKV_CLI_BENCH_CUDA_H
#define PAGEDKV_CLI_BENCH_CUDA_H

#include "bench.h"
#include "bench_run.h"
#include "device.h"

enum {
    CUDA_MAX_NODES = 64,
    CUDA_QUICK_NODES = 16,
    CUDA_MAX_CONTENDERS = 8,
    CUDA_MAX_LAYERS = 32,
    CUDA_NODE_NUMBERS = 80 << 10 /* int32 that a node may have in device memory */
};

/* What kernels read, before the nodes' own: places in `numbers`. */
enum { CUDA_AT_ZERO = 0, CUDA_AT_STATUS = 1, CUDA_AT_SCALE = 2, CUDA_AT_NODES = 64 };

/* The device and its memory, for all cases. */
typedef struct cuda_bench {
    const bench_options *options;
    cli_device           device;
    char                *cache, *source, *flushed; /* of the device */
    int64_t              cache_bytes, source_bytes, flushed_bytes;
    int32_t             *numbers; /* of the device */
    int32_t             *staging; /* [n_nodes * CUDA_NODE_NUMBERS] the nodes' numbers, here */
    int64_t              n_nodes; /* of a graph */
    uint64_t             random;
} cuda_bench;

/* Ways to do a call; what a kind is, its case knows. */
enum {
    CUDA_CALL,     /* the library's */
    CUDA_CALLS,    /* the same as a call for each layer */
    CUDA_NO_COUNT, /* the same call with a count of 0: what a launch costs */
    CUDA_UNPADDED, /* the same with N = n */
    CUDA_MERGED,   /* the same, merged */
    CUDA_COPY,     /* as many bytes in one block */
    CUDA_LARGE     /* a large block: the rate that copies come to */
};

typedef struct cuda_contender {
    const char *impl;
    const char *launch;  /* "graph"; "stream": calls without a graph */
    const char *plan;    /* NULL: the row's */
    int         kind;
    int         calls, unpadded; /* contenders to compare with; -1: none */
    int64_t     moved_bytes;     /* read and written by a call; 0: none */
    int64_t     num_slices;      /* -1: the row's */
    gpu_graph   graph;
    bool        has_run;
} cuda_contender;

typedef struct cuda_work {
    cuda_bench    *bench;
    bench_row      row; /* what all rows have in common */
    bool           is_warm; /* the graph runs once before it is timed, after the L2 was flushed */
    int            n_contenders;
    cuda_contender contenders[CUDA_MAX_CONTENDERS];
    void          *ctx;
    int (*put)(void *ctx, int kind, int64_t node); /* a call on the stream; exit status */
    int (*check)(void *ctx, int kind);             /* after a first run; exit status */
    bench_job      job;
} cuda_work;

/* One thing to time: a case, a pattern, and what a call of it does. */
typedef struct cuda_item {
    int (*run)(cuda_bench *b, const struct cuda_item *item, int64_t end_ns,
               bench_results *results);
    const char *case_name, *pattern;
    unsigned    layout;
    int64_t     page_size;
    int64_t     tokens;
    int64_t     slice_tokens; /* longest slice */
    int64_t     padded;       /* N; 0: as many as are real */
    int         n_layers;
    pkv_dtype   cache_dtype;  /* 0: no conversion */
    bool        is_warm;
} cuda_item;

enum { CUDA_MAX_ITEMS = 256 };

/* Append what the options ask for; the new number of items. */
int cuda_update_items(const bench_options *o, cuda_item *items, int n);
int cuda_pages_items(const bench_options *o, cuda_item *items, int n);

/* A row with what is known of every case; a contender more, which it returns. */
bench_row       cuda_row(const cuda_item *item);
cuda_contender *cuda_add(cuda_work *w, const char *impl, int kind, int64_t moved_bytes);

/* Times it until end_ns and appends its rows.  Exit status. */
int cuda_work_run(cuda_work *w, int64_t end_ns, bench_results *results);

/* Numbers of a node: here, and where they will be in device memory. */
int32_t *cuda_staged(const cuda_bench *b, int64_t node);
int32_t *cuda_numbers(const cuda_bench *b, int64_t node);

/* Fills memory of the device with numbers that look random, others each time.  Exit status. */
int cuda_fill(cuda_bench *b, char *memory, int64_t n_bytes);

/* All staged numbers to the device.  Exit status. */
int cuda_put_numbers(cuda_bench *b);

/* n_bytes of a block of memory for a node: nodes have theirs one after another, round and round. */
char *cuda_turn(char *block, int64_t block_bytes, int64_t n_bytes, int64_t node);

/* A plain copy for CUDA_COPY and CUDA_LARGE: moved_bytes / 2 from there to there.  Exit status. */
int cuda_put_copy(const cuda_bench *b, int64_t moved_bytes, int64_t node);

/* Bytes from the device, now.  Exit status. */
int cuda_read(cuda_bench *b, void *host, const void *device, int64_t n_bytes);

/* A line where the status word is not 0.  Exit status. */
int cuda_check_status(cuda_bench *b, const bench_row *row);

/* Numbers in a random order.  The caller frees it; NULL: no memory. */
int32_t *cuda_shuffled(int64_t n, uint64_t *random);

#endif
