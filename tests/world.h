/*
 * One layer to test with: a cache of some layout in guarded memory, a copy of
 * it for the model, and new K/V of some shape.
 */
#ifndef PAGEDKV_TESTS_WORLD_H
#define PAGEDKV_TESTS_WORLD_H

#include "model.h"

enum {
    LAYOUT_COMBINED,
    LAYOUT_NHD,
    LAYOUT_HND,
    LAYOUT_CONTENT,
    LAYOUT_MLA,    /* with padding between latent and rope and at the row's end */
    LAYOUT_PADDED, /* K by token, V by head, odd padding at every axis */
    LAYOUT_K_ONLY,
    LAYOUT_COUNT
};

enum {
    SOURCE_COMBINED,
    SOURCE_APART,
    SOURCE_FUSED,    /* views into a fused QKV output */
    SOURCE_ODD,      /* odd start, odd padding at every axis */
    SOURCE_REPEATED, /* token stride 0 */
    SOURCE_COUNT
};

typedef struct world_shape {
    int       layout;
    int       source;
    pkv_dtype dtype;
    int64_t   n_pages;
    int64_t   page_size;
    int64_t   n_heads;
    int64_t   head_dim_k;
    int64_t   head_dim_v;
    int64_t   n_tokens;
} world_shape;

typedef struct world {
    world_shape    shape; /* as asked, less what the layout cannot have */
    guarded        memory;
    unsigned char *model_memory; /* [memory.room_bytes] */
    pkv_cache      cache;
    pkv_cache      model_cache; /* the same view of model_memory */
    guarded        source_memory; /* read only */
    pkv_new_kv     new_kv;
} world;

/*
 * Builds the views and fills the memory: poison in the cache, the pattern in
 * the source.  What a layout cannot have (V of another head_dim in a combined
 * one, many heads in MLA) is made to fit.  Names the case.
 */
void world_init(world *w, const world_shape *shape, int pattern, uint64_t seed);

void world_free(world *w);

/* Fails unless the whole memory of the cache, paddings too, is as the model has it. */
void world_expect_same(const world *w);

/* pkv_update() on the cache, model_update() on the copy, and the comparison. */
void world_update(world *w, const pkv_slices *slices, const pkv_update_opts *opts);

/* Rows with the strides of the source, in memory that is as large as the source's. */
pkv_rows world_rows(const world *w, unsigned char *memory);

/* pkv_gather() into rows shaped as the source, against model_gather(). */
void world_gather(world *w, const pkv_slices *slices, const pkv_update_opts *opts);

/*
 * Slices in random order over disjoint slots and rows, some of them empty,
 * some longer than a page.  list must be empty.
 */
void world_random_slices(const world *w, rng *r, slice_list *list);

#endif
