/* The replay's inner parts: memory, steps and checks work on one engine. */
#ifndef PAGEDKV_CLI_ENGINE_H
#define PAGEDKV_CLI_ENGINE_H

#include "content.h"
#include "replay.h"
#include "schedule.h"

/* Poison in front of the first layer's cache and, at least, behind the last one's. */
enum { ENGINE_GUARD_BYTES = 4096 };

/* One token of the current step. */
typedef struct step_token {
    uint64_t key;
    int64_t  row; /* of the schedule */
    int64_t  position;
    int64_t  slot;
} step_token;

/* The other side, where the cache is in the memory of a GPU: engine_cuda.h. */
typedef struct engine_cuda engine_cuda;

typedef struct engine {
    const replay_options *o;
    const trace          *trace;
    replay_result        *result;
    prompts               prompts;
    schedule              schedule;
    content_shape         shape;        /* of the cache */
    int64_t               source_row_bytes;
    bool                  converts;     /* new K/V and cache differ in their element types */
    int64_t               longest_pages; /* pages of the longest request, at least 1 */
    int64_t               layer_bytes;  /* of one layer's cache */
    int64_t               source_bytes; /* of one layer's new K/V */
    pkv_memory            cache_memory;
    pkv_memory            source_memory;
    unsigned char        *scales;  /* [num_layers, K and V, slots, heads] floats; NULL: none */
    float                 given_scale;
    pkv_cache            *caches;  /* [num_layers] */
    pkv_new_kv           *sources; /* [num_layers] */
    int32_t              *columns[N_WAYS]; /* [3, slices_capacity] */
    int32_t               counts[N_WAYS];
    int64_t               slices_capacity;
    step_token           *tokens;  /* [max_num_batched_tokens] */
    unsigned char        *stamps;  /* [slots] stamp that each slot must carry */
    unsigned char        *scratch; /* [threads, scratch_bytes] */
    int64_t               scratch_bytes; /* a row, its scales, and the numbers of a vector */
    int64_t               step;
    bool                  reported; /* the first difference was printed */
    engine_cuda          *cuda;     /* NULL: the cache is in host memory */
    int                   failed;   /* exit status of the first copy from or to it that failed */
} engine;

/*
 * Where things lie.  Plain arithmetic on purpose, and not the library's: the
 * check must not share the code that it checks.
 */
unsigned char *engine_cache_slot(const engine *e, int64_t layer, int64_t slot);
unsigned char *engine_source_row(const engine *e, int64_t layer, int64_t row);
int64_t        engine_row_slot(const engine *e, int64_t row, int64_t position);

/* The scales of a slot, one a head, for K (plane 0) or V, where the cache has computed ones. */
unsigned char *engine_slot_scales(const engine *e, int64_t layer, int plane, int64_t slot);
int64_t        engine_scales_bytes(const engine *e); /* of one plane of one slot */

/*
 * The new K/V of one token with its stamp, and what the cache must then hold of it:
 * in scratch, its row and behind that its scales of K, then of V.
 */
void engine_fill_source(const engine *e, const step_token *token, int64_t layer, int stamp,
                        unsigned char *row, unsigned char *scratch);
void engine_expect(const engine *e, uint64_t key, int64_t position, int64_t layer, int stamp,
                   unsigned char *scratch);

/* The calling thread's own. */
unsigned char *engine_scratch(const engine *e);

/* Sizes and allocates everything; an exit status.  engine_tear_down() in any case. */
int  engine_set_up(engine *e);
void engine_tear_down(engine *e);

/*
 * Touches all memory, since the first to touch a page pays for it and that must
 * not be the measured write; measures the copy limit; leaves the cache poisoned.
 * Exit status.
 */
int engine_touch_memory(engine *e);

/*
 * The checks.  Each counts in the result what it finds and prints the first
 * difference of the run.
 *
 * Before a step is written: nobody wrote to its slots yet, and its plans have as
 * many slices as its tokens make.
 */
void engine_check_targets(engine *e);
void engine_check_counts(engine *e);

/* Reads a row's whole history back through its block table and compares it; its tokens. */
int64_t engine_verify_row(engine *e, int64_t row);

/* Marks the memory of a row's pages as nobody's, those that others have or can find left out. */
void engine_poison_row(engine *e, int64_t row);

/* A cached page is taken for others: it must be whole up to now, and is nobody's then. */
void engine_check_evicted(engine *e, int32_t page, const ledger_note *note);

/*
 * After the last request every page is free: every byte of the cache is poison,
 * but those of cached pages, which are whole.
 */
void engine_check_rest(engine *e);

#endif
