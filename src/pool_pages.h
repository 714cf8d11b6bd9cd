/* What the prefix index and sequences ask the pool beside its public calls. */
#ifndef PAGEDKV_SRC_POOL_PAGES_H
#define PAGEDKV_SRC_POOL_PAGES_H

#include "internal.h"

/* How many pages it has; -1: there is no pool. */
int64_t pkv_i_pool_n_pages(const pkv_pool *pool);

/* Is no reservation open? */
bool pkv_i_pool_is_settled(const pkv_pool *pool);

/*
 * How often kept content was lost, ever; evictions of a reservation count when it is
 * committed.  While it is the same, what was found is still there.
 */
int64_t pkv_i_pool_losses(const pkv_pool *pool);

/* Is the content of this page worth keeping? */
bool pkv_i_pool_is_kept(const pkv_pool *pool, int32_t page);

/* May the page be written by its only owner?  Kept content is not overwritten. */
bool pkv_i_pool_is_writable(const pkv_pool *pool, int32_t page);

/* Its counts are needed soon. */
void pkv_i_pool_fetch(const pkv_pool *pool, int32_t page);

#endif
