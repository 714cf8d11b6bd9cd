/*
 * A layer with scales to convert into and out of: one memory with the cache and its
 * scales, a copy of it for the model, and rows of another element type.  And updates,
 * gathers and page copies with conversions, written a second time.
 */
#ifndef PAGEDKV_TESTS_CONVERT_WORLD_H
#define PAGEDKV_TESTS_CONVERT_WORLD_H

#include "numbers_model.h"
#include "support.h"

enum {
    CW_COMBINED,
    CW_NHD,
    CW_HND,
    CW_CONTENT,
    CW_MLA,      /* K and V of one row, with room between and behind */
    CW_MLA_KEYS, /* keys only, rows aligned to 64 bytes of their own */
    CW_PADDED,   /* K by token, V by head, odd room at every axis; Dk and Dv may differ */
    CW_KEYS,     /* V absent */
    CW_LAYOUTS
};

enum {
    CW_ROWS_APART,
    CW_ROWS_FUSED, /* K and V in rows of a fused QKV output */
    CW_ROWS_ODD,   /* odd start and odd room at every axis */
    CW_ROWS_COMBINED,
    CW_ROWS
};

enum {
    CW_SCALES_APART,  /* [P, S, H, groups], dense, behind the cache */
    CW_SCALES_PAGE,   /* at the end of each page */
    CW_SCALES_VECTOR, /* behind each head vector; layouts of their own planes only, else PAGE */
    CW_SCALES_ODD,    /* apart, heads outermost in a page, odd strides */
    CW_PLACES
};

typedef struct cw_shape {
    int       layout, rows, place;
    pkv_dtype dtype, rows_dtype;
    int64_t   n_pages, page_size, n_heads, head_dim[2], n_tokens;
    int32_t   kind[2], n_groups[2]; /* n_groups: of a head vector, for PKV_SCALES_GROUP */
} cw_shape;

typedef struct cw {
    cw_shape       shape; /* as asked, less what cannot be */
    guarded        memory;
    unsigned char *model_memory; /* [memory.room_bytes] */
    pkv_cache      cache, model_cache;
    guarded        rows_memory; /* read only */
    pkv_new_kv     new_kv;
} cw;

/* Fills all memory, given scales with numbers between 2^-9 and 8; names the case. */
void cw_init(cw *w, const cw_shape *shape, uint64_t seed);
void cw_free(cw *w);

/* A shape drawn at random: all dtypes, kinds, layouts, sizes. */
cw_shape cw_random_shape(rng *r);

/* A conversion of a shape: the i-th of the pairs. */
void cw_set_pair(cw_shape *shape, int i);

/* Names the case. */
void cw_note(const cw *w, uint64_t seed, const char *what);

/* The whole memory of cache and scales is as the model has it. */
void cw_expect_same(const cw *w);

/* The call, the model, the comparison.  A gather writes rows of its own, shaped as new_kv. */
void cw_update(cw *w, const pkv_slices *slices, const pkv_update_opts *opts);
void cw_gather(cw *w, const pkv_slices *slices, const pkv_update_opts *opts);

/* A parallel-for with a thread for each part; *user, an int32_t, receives their number. */
void cw_threads(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx);

/* Rows with the strides of new_kv in memory that is as large as its. */
pkv_rows cw_rows(const cw *w, unsigned char *memory);

/* Slices in any order over disjoint slots and rows; list must be empty. */
void cw_random_slices(const cw *w, rng *r, slice_list *list);

/* The second time. */
void convert_update(const pkv_cache *cache, const pkv_new_kv *new_kv, const pkv_slices *slices);
void convert_gather(const pkv_cache *cache, const pkv_rows *rows, const pkv_slices *slices);

/* Token slot a of src to token slot b of dst, of caches of one shape. */
void convert_token(const pkv_cache *src, int64_t a, const pkv_cache *dst, int64_t b);

#endif
