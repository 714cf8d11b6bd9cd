/*
 * pagedkv/moves.h - pages copied inside a cache, between caches, and to a host
 * buffer and back.
 *
 * Included by pagedkv/pagedkv.h, whose conventions hold here too.  No plan and no
 * pool: the caller says which page goes where.
 */
#ifndef PAGEDKV_MOVES_H
#define PAGEDKV_MOVES_H

#include <pagedkv/pagedkv.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One page to copy: its first n_tokens tokens, in every layer of the group. */
typedef struct pkv_page_copy {
    int32_t src;
    int32_t dst;
    int32_t n_tokens; /* 1 .. S */
    int32_t group;
} pkv_page_copy;

/*
 * pkv_copy_pages() - for every copy and every layer of its group: the first
 * n_tokens tokens of page src of the layer's source go to the same places of page
 * dst of its destination.  Every other byte keeps its value.
 *
 * srcs       [n_layers]
 * dsts       [n_layers], caches in other memory; NULL: the sources themselves.
 *            Page size, heads and head_dim are those of the source; layout,
 *            number of pages and dtype may differ.
 * group_ids  [n_layers] group of each layer; NULL: all 0.
 * copies     [n_copies].  A copy of a group that no layer has moves nothing;
 *            that no page is named twice holds for it as well.
 *
 * Within a group no page is written twice.  With dsts NULL no page that is
 * written is read by any of the copies: chains and cycles are refused, for their
 * outcome would hang on an order.  Destinations with PKV_CACHE_SHARED are checked
 * and skipped.  The memory of one layer's destination must not overlap another
 * layer's source or destination: that is not checked.
 *
 * Numerics  The same dtype: a copy of bits; scales that were computed are copied
 *           with their tokens, where both sides have the same kind, and given ones
 *           must be equal.  Else one of the two is f32, f16 or bf16, and elements
 *           are converted as by pkv_update() or pkv_gather(), once.
 *
 * Returns
 *     PKV_OK             all are copied.
 *     PKV_E_INVALID      a NULL, a view that its check refuses, shapes that
 *                        do not fit, memory that overlaps.
 *     PKV_E_RANGE        err->index names the copy: rule PAGE for a page of
 *                        neither cache, one that is written twice, or one that is
 *                        written and read (err->value: the page); rule SLICE_LEN
 *                        for n_tokens; rule SCALE for a given scale.
 *     PKV_E_UNSUPPORTED  no conversion between these dtypes, or scales of
 *                        different kinds.
 *
 * After a failure nothing was written.
 * Threads and opts as pkv_update().  Cost: the bytes, and about 100 ns a copy and
 * layer; from some 10,000 copies on, finding pages that are named twice grows
 * with their square.
 */
PKV_API pkv_status pkv_copy_pages(const pkv_cache *srcs, const pkv_cache *dsts,
                                  const int32_t *group_ids, int64_t n_layers,
                                  const pkv_page_copy *copies, int64_t n_copies,
                                  const pkv_update_opts *opts, pkv_error *err);

/*
 * pkv_cache_swapped() - views of a host buffer in which all layers of a page lie
 * side by side, so that a page is swapped out and in as one block: hand them to
 * pkv_copy_pages() as destinations, and as sources to bring pages back.
 *
 * out            [n_layers], receives a view for each layer: K [S, H, Dk], then V
 *                [S, H, Dv], then computed scales of K and of V [S, H, groups].
 *                Given scales are those of the layer, at their place.  A layer with
 *                PKV_CACHE_SHARED gets room of its own: leave it out.
 * struct_size    sizeof(*out), which is also the distance between its elements.
 * layers         [n_layers], the caches.
 * buffer         n_pages * *page_bytes_out bytes, any alignment; NULL: to ask for
 *                their number.
 * n_pages        Pages that the buffer holds, >= 1.
 * page_bytes_out Receives the bytes of one page in all layers.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_UNSUPPORTED for a struct_size.  On failure
 * nothing is written.
 */
PKV_API pkv_status pkv_cache_swapped(pkv_cache *out, size_t struct_size, const pkv_cache *layers,
                                     int64_t n_layers, void *buffer, int64_t n_pages,
                                     int64_t *page_bytes_out, pkv_error *err);

#ifdef __cplusplus
}
#endif

#endif /* PAGEDKV_MOVES_H */
