/* Random steps for the planner's tests. */
#ifndef PAGEDKV_TESTS_BATCHES_H
#define PAGEDKV_TESTS_BATCHES_H

#include "support.h"

enum { BATCH_REQUESTS = 12, BATCH_WIDTH = 24 };

/* A batch in arrays of its own, in both forms.  Not to be copied: it points into itself. */
typedef struct random_batch {
    pkv_batch table; /* 2-D */
    pkv_batch csr;
    int32_t   computed[BATCH_REQUESTS];
    int32_t   scheduled[BATCH_REQUESTS];
    int32_t   block_table[BATCH_REQUESTS * (BATCH_WIDTH + 5)];
    int32_t   indptr[BATCH_REQUESTS + 1];
    int32_t   indices[BATCH_REQUESTS * BATCH_WIDTH];
} random_batch;

/*
 * Some requests empty, some with neighbouring pages, so that merging has work;
 * rows of the table lie up to 5 entries apart and unused entries hold garbage.
 */
void random_batch_init(random_batch *b, rng *r, int64_t page_size);

/* A 2-D batch over the caller's arrays; struct_size and sizes filled. */
pkv_batch batch_of(const int32_t *computed, const int32_t *scheduled, int64_t n_requests,
                   const int32_t *block_table, int64_t width, int64_t page_size);

#endif
