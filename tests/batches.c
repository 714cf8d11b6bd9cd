/* Random steps; see batches.h. */
#include "batches.h"

enum { N_PAGES = 4000 };

pkv_batch batch_of(const int32_t *computed, const int32_t *scheduled, int64_t n_requests,
                   const int32_t *block_table, int64_t width, int64_t page_size)
{
    return (pkv_batch){.struct_size = sizeof(pkv_batch),
                       .n_requests = n_requests,
                       .computed = computed,
                       .scheduled = scheduled,
                       .block_table = block_table,
                       .block_table_stride = width,
                       .block_table_width = width,
                       .page_size = page_size};
}

/* Pages of one request: each either follows the one before or is anywhere. */
static void random_pages(rng *r, int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        bool follows = i > 0 && pages[i - 1] + 1 < N_PAGES && rng_range(r, 0, 2) > 0;
        pages[i] = follows ? pages[i - 1] + 1 : (int32_t)rng_range(r, 0, N_PAGES - 1);
    }
}

void random_batch_init(random_batch *b, rng *r, int64_t page_size)
{
    int64_t n = rng_range(r, 0, BATCH_REQUESTS);
    int64_t stride = BATCH_WIDTH + rng_range(r, 0, 5);
    fill(b->block_table, sizeof b->block_table, FILL_RANDOM, rng_next(r));
    b->indptr[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t held = rng_range(r, 0, 4) == 0 ? 0 : rng_range(r, 1, BATCH_WIDTH * page_size);
        int64_t computed = rng_range(r, 0, 2) == 0 ? 0 : rng_range(r, 0, held);
        b->computed[i] = (int32_t)computed;
        b->scheduled[i] = (int32_t)(held - computed);
        int64_t n_pages = (held + page_size - 1) / page_size;
        int32_t *pages = b->indices + b->indptr[i];
        random_pages(r, pages, n_pages);
        for (int64_t p = 0; p < n_pages; p++) {
            b->block_table[i * stride + p] = pages[p];
        }
        b->indptr[i + 1] = b->indptr[i] + (int32_t)n_pages;
    }
    b->table = batch_of(b->computed, b->scheduled, n, b->block_table, BATCH_WIDTH, page_size);
    b->table.block_table_stride = stride;
    b->table.n_pages = N_PAGES;
    b->csr = b->table;
    b->csr.block_table = NULL;
    b->csr.indptr = b->indptr;
    b->csr.indices = b->indices;
}
