/*
 * What one writes in Python without the library, as contenders: NumPy's
 * `cache[slots] = new` and PyTorch's `cache.index_copy_(0, slots, new)`.  They
 * run in a child process that has memory of its own, prepares as the program
 * does and times itself; its text is bench_peer.py.  A peer that is not there,
 * or a child that fails, costs a note and these rows, never the run.
 */
#ifndef PAGEDKV_CLI_BENCH_PEERS_H
#define PAGEDKV_CLI_BENCH_PEERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bench_memory.h"
#include "bench_step.h"

enum { BENCH_NUMPY, BENCH_INDEX_COPY, BENCH_N_PEERS };

typedef struct bench_peers {
    const bench_options *options;
    const char          *python;
    pid_t                pid; /* 0: no child, or no longer */
    int                  socket;
    bool                 greeted; /* the child has said which peers it has */
    bool                 has[BENCH_N_PEERS];
} bench_peers;

/* One run of a peer: the calls that it makes, one step each. */
typedef struct bench_peer_run {
    int               peer;
    int               threads;
    bool              warm;
    const bench_view *view;
    const bench_step *steps;
    int64_t           n_calls;
    int64_t           source_bytes; /* of the first call: from the start of the source memory */
    int64_t           stride_bytes; /* from the source of one call to the next */
    pkv_dtype         src_dtype;    /* of a conversion to the view's dtype; 0: a copy */
    uint32_t          factor_bits;  /* a float that elements are multiplied by; 0: none */
} bench_peer_run;

/* "numpy" and "index_copy_". */
const char *bench_peer_name(int peer);

/* Starts the child and does not wait for it.  All zeros: no peers. */
void bench_peers_start(bench_peers *peers, const bench_options *options);
void bench_peers_close(bench_peers *peers);

/*
 * The child takes memory like this one, for which huge pages were asked or
 * refused, in the place of what it had.
 */
void bench_peers_open(bench_peers *peers, const bench_memory *memory, bool huge_pages);

/* Does this peer take part? */
bool bench_peers_has(const bench_peers *peers, int peer);

/* Can this one convert between these types?  A question to the child. */
bool bench_peers_converts(bench_peers *peers, int peer, pkv_dtype from, pkv_dtype to);

/* Time of all calls in ns; 0 where the child has failed, and no peer has any more. */
double bench_peers_run(bench_peers *peers, const bench_peer_run *run);

/* A slot that does not hold what the last run wrote, or -1. */
int64_t bench_peers_check(bench_peers *peers);

#endif
