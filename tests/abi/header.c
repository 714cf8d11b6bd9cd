/*
 * The public header alone, in C99, C11 and C++17.  Sizes and offsets are pinned:
 * programs compiled against an older header go on to use this library.  A
 * struct may grow at its end only; its SIZE line then becomes a lower bound.
 */
#include <pagedkv/pagedkv.h>
#include <pagedkv/pagedkv_cuda.h>

/* A negative array size is the static assert that all three languages know. */
#define SIZE(type, bytes) typedef char size_of_##type[sizeof(type) == (bytes) ? 1 : -1]
#define AT(type, member, bytes) \
    typedef char place_of_##type##_##member[offsetof(type, member) == (bytes) ? 1 : -1]
#define VALUE(name, value) typedef char value_of_##name[(name) == (value) ? 1 : -1]

#if defined(__LP64__)
SIZE(pkv_error, 56);
AT(pkv_error, code, 0);
AT(pkv_error, rule, 4);
AT(pkv_error, index, 8);
AT(pkv_error, layer, 16);
AT(pkv_error, value, 24);
AT(pkv_error, limit, 32);
AT(pkv_error, detail, 40);
AT(pkv_error, what, 48);

SIZE(pkv_plane, 40);
AT(pkv_plane, data, 0);
AT(pkv_plane, page_stride_bytes, 8);
AT(pkv_plane, token_stride_bytes, 16);
AT(pkv_plane, head_stride_bytes, 24);
AT(pkv_plane, head_dim, 32);

SIZE(pkv_scales, 40);
AT(pkv_scales, data, 0);
AT(pkv_scales, page_stride_bytes, 8);
AT(pkv_scales, token_stride_bytes, 16);
AT(pkv_scales, head_stride_bytes, 24);
AT(pkv_scales, kind, 32);
AT(pkv_scales, group_size, 36);

SIZE(pkv_cache, 200);
AT(pkv_cache, struct_size, 0);
AT(pkv_cache, n_pages, 8);
AT(pkv_cache, page_size, 16);
AT(pkv_cache, n_heads, 24);
AT(pkv_cache, dtype, 32);
AT(pkv_cache, flags, 36);
AT(pkv_cache, k, 40);
AT(pkv_cache, v, 80);
AT(pkv_cache, k_scales, 120);
AT(pkv_cache, v_scales, 160);

SIZE(pkv_new_kv_plane, 32);
AT(pkv_new_kv_plane, data, 0);
AT(pkv_new_kv_plane, token_stride_bytes, 8);
AT(pkv_new_kv_plane, head_stride_bytes, 16);
AT(pkv_new_kv_plane, head_dim, 24);

SIZE(pkv_new_kv, 96);
AT(pkv_new_kv, struct_size, 0);
AT(pkv_new_kv, n_tokens, 8);
AT(pkv_new_kv, n_heads, 16);
AT(pkv_new_kv, dtype, 24);
AT(pkv_new_kv, flags, 28);
AT(pkv_new_kv, k, 32);
AT(pkv_new_kv, v, 64);

SIZE(pkv_rows_plane, 32);
AT(pkv_rows_plane, data, 0);
AT(pkv_rows_plane, token_stride_bytes, 8);
AT(pkv_rows_plane, head_stride_bytes, 16);
AT(pkv_rows_plane, head_dim, 24);

SIZE(pkv_rows, 96);
AT(pkv_rows, struct_size, 0);
AT(pkv_rows, n_tokens, 8);
AT(pkv_rows, n_heads, 16);
AT(pkv_rows, dtype, 24);
AT(pkv_rows, flags, 28);
AT(pkv_rows, k, 32);
AT(pkv_rows, v, 64);

SIZE(pkv_slices, 48);
AT(pkv_slices, struct_size, 0);
AT(pkv_slices, capacity, 8);
AT(pkv_slices, kv_cache_start, 16);
AT(pkv_slices, new_kv_start, 24);
AT(pkv_slices, slice_len, 32);
AT(pkv_slices, num_slices, 40);

SIZE(pkv_batch, 96);
AT(pkv_batch, struct_size, 0);
AT(pkv_batch, n_requests, 8);
AT(pkv_batch, computed, 16);
AT(pkv_batch, scheduled, 24);
AT(pkv_batch, block_table, 32);
AT(pkv_batch, block_table_stride, 40);
AT(pkv_batch, block_table_width, 48);
AT(pkv_batch, indptr, 56);
AT(pkv_batch, indices, 64);
AT(pkv_batch, page_size, 72);
AT(pkv_batch, n_pages, 80);
AT(pkv_batch, table_rows, 88);

SIZE(pkv_step_limits, 48);
AT(pkv_step_limits, struct_size, 0);
AT(pkv_step_limits, max_num_reqs, 8);
AT(pkv_step_limits, max_num_batched_tokens, 16);
AT(pkv_step_limits, bucket_gap_tokens, 24);
AT(pkv_step_limits, max_slice_tokens, 32);
AT(pkv_step_limits, num_slices_per_block, 40);
AT(pkv_step_limits, reserved, 44);

SIZE(pkv_step, 88);
AT(pkv_step, struct_size, 0);
AT(pkv_step, slices, 8);
AT(pkv_step, block_tables, 16);
AT(pkv_step, block_tables_width, 24);
AT(pkv_step, context_lens, 32);
AT(pkv_step, query_start_loc, 40);
AT(pkv_step, num_seqs, 48);
AT(pkv_step, n_tokens, 56);
AT(pkv_step, token_bucket, 64);
AT(pkv_step, padded_num_slices, 72);
AT(pkv_step, num_slices_per_block, 80);
AT(pkv_step, reserved, 84);

SIZE(pkv_update_opts, 40);
AT(pkv_update_opts, struct_size, 0);
AT(pkv_update_opts, flags, 8);
AT(pkv_update_opts, max_threads, 12);
AT(pkv_update_opts, parallel_for, 16);
AT(pkv_update_opts, parallel_user, 24);
AT(pkv_update_opts, status_word, 32);

SIZE(pkv_pool_config, 24);
AT(pkv_pool_config, struct_size, 0);
AT(pkv_pool_config, n_pages, 8);
AT(pkv_pool_config, allocator, 16);
AT(pkv_pool_config, flags, 20);

SIZE(pkv_allocator, 32);
AT(pkv_allocator, struct_size, 0);
AT(pkv_allocator, alloc, 8);
AT(pkv_allocator, release, 16);
AT(pkv_allocator, user, 24);

SIZE(pkv_pool_counts, 72);
AT(pkv_pool_counts, struct_size, 0);
AT(pkv_pool_counts, n_pages, 8);
AT(pkv_pool_counts, n_blank, 16);
AT(pkv_pool_counts, n_cached, 24);
AT(pkv_pool_counts, n_used, 32);
AT(pkv_pool_counts, n_shared, 40);
AT(pkv_pool_counts, n_used_peak, 48);
AT(pkv_pool_counts, n_evictions, 56);
AT(pkv_pool_counts, largest_extent, 64);

SIZE(pkv_seqs_config, 40);
AT(pkv_seqs_config, struct_size, 0);
AT(pkv_seqs_config, max_seqs, 8);
AT(pkv_seqs_config, max_pages_per_seq, 16);
AT(pkv_seqs_config, page_size, 24);
AT(pkv_seqs_config, flags, 32);
AT(pkv_seqs_config, n_groups, 36);

SIZE(pkv_page_copy, 16);
AT(pkv_page_copy, src, 0);
AT(pkv_page_copy, dst, 4);
AT(pkv_page_copy, n_tokens, 8);
AT(pkv_page_copy, group, 12);

SIZE(pkv_prefix_hit, 32);
AT(pkv_prefix_hit, pages, 0);
AT(pkv_prefix_hit, stride, 8);
AT(pkv_prefix_hit, n_pages, 16);
AT(pkv_prefix_hit, stamp, 24);

SIZE(pkv_seq_state, 64);
AT(pkv_seq_state, struct_size, 0);
AT(pkv_seq_state, n_tokens, 8);
AT(pkv_seq_state, n_reserved, 16);
AT(pkv_seq_state, n_pages, 24);
AT(pkv_seq_state, n_published, 32);
AT(pkv_seq_state, row, 40);
AT(pkv_seq_state, pages, 48);
AT(pkv_seq_state, pages_stride, 56);

SIZE(pkv_prefix_config, 176);
AT(pkv_prefix_config, struct_size, 0);
AT(pkv_prefix_config, page_size, 8);
AT(pkv_prefix_config, n_groups, 16);
AT(pkv_prefix_config, flags, 20);
AT(pkv_prefix_config, groups, 24);
AT(pkv_prefix_config, max_events, 152);
AT(pkv_prefix_config, hash, 160);
AT(pkv_prefix_config, seed, 168);

SIZE(pkv_prefix_event, 40);
AT(pkv_prefix_event, kind, 0);
AT(pkv_prefix_event, group, 4);
AT(pkv_prefix_event, page, 8);
AT(pkv_prefix_event, is_first, 12);
AT(pkv_prefix_event, id, 16);
AT(pkv_prefix_event, parent, 24);
AT(pkv_prefix_event, tokens, 32);

SIZE(pkv_prefix_counts, 72);
AT(pkv_prefix_counts, struct_size, 0);
AT(pkv_prefix_counts, n_pages, 8);
AT(pkv_prefix_counts, n_finds, 16);
AT(pkv_prefix_counts, n_find_tokens, 24);
AT(pkv_prefix_counts, n_hit_tokens, 32);
AT(pkv_prefix_counts, n_published, 40);
AT(pkv_prefix_counts, n_removed, 48);
AT(pkv_prefix_counts, n_events, 56);
AT(pkv_prefix_counts, n_events_lost, 64);

SIZE(pkv_memory, 40);
AT(pkv_memory, struct_size, 0);
AT(pkv_memory, data, 8);
AT(pkv_memory, size_bytes, 16);
AT(pkv_memory, map_bytes, 24);
AT(pkv_memory, flags, 32);
AT(pkv_memory, reserved, 36);

SIZE(pkv_cuda_info, 120);
AT(pkv_cuda_info, device, 8);
AT(pkv_cuda_info, driver_version, 12);
AT(pkv_cuda_info, compute_major, 16);
AT(pkv_cuda_info, compute_minor, 20);
AT(pkv_cuda_info, n_multiprocessors, 24);
AT(pkv_cuda_info, grid_blocks, 28);
AT(pkv_cuda_info, block_threads, 32);
AT(pkv_cuda_info, memory_bytes, 40);
AT(pkv_cuda_info, l2_bytes, 48);
AT(pkv_cuda_info, name, 56);
SIZE(pkv_cuda_batch, 80);
AT(pkv_cuda_batch, num_seqs, 8);
AT(pkv_cuda_batch, max_num_reqs, 16);
AT(pkv_cuda_batch, context_lens, 24);
AT(pkv_cuda_batch, query_start_loc, 32);
AT(pkv_cuda_batch, block_table, 40);
AT(pkv_cuda_batch, block_table_stride, 48);
AT(pkv_cuda_batch, block_table_width, 56);
AT(pkv_cuda_batch, page_size, 64);
AT(pkv_cuda_batch, n_pages, 72);
SIZE(pkv_cuda_slots, 80);
AT(pkv_cuda_slots, slots, 8);
AT(pkv_cuda_slots, slot_bits, 16);
AT(pkv_cuda_slots, n_tokens, 24);
AT(pkv_cuda_slots, num_tokens, 32);
AT(pkv_cuda_slots, query_start_loc, 40);
AT(pkv_cuda_slots, num_seqs, 48);
AT(pkv_cuda_slots, max_num_reqs, 56);
AT(pkv_cuda_slots, page_size, 64);
AT(pkv_cuda_slots, n_slots, 72);
#endif

VALUE(PKV_E_CORRUPT, 10);
VALUE(PKV_RULE_LIMIT, 16);
VALUE(PKV_RULE_SCALE, 17);
VALUE(PKV_DTYPE_BITS32, 10);
VALUE(PKV_SCALES_NONE, 0);
VALUE(PKV_SCALES_TENSOR, 1);
VALUE(PKV_SCALES_HEAD, 2);
VALUE(PKV_SCALES_TOKEN_HEAD, 3);
VALUE(PKV_SCALES_GROUP, 4);
VALUE(PKV_CACHE_SHARED, 1);
VALUE(PKV_UPDATE_STRICT, 1);
VALUE(PKV_UPDATE_CHECKED, 2);
VALUE(PKV_UPDATE_READ_SOON, 4);
VALUE(PKV_UPDATE_DEPENDENT_LAUNCH, 8);
VALUE(PKV_MEMORY_HUGE_PAGES, 1);
VALUE(PKV_POOL_EXTENT, 0);
VALUE(PKV_POOL_LIFO, 1);
VALUE(PKV_POOL_FIFO, 2);
VALUE(PKV_MAX_GROUPS, 8);
VALUE(PKV_PREFIX_STORED, 1);
VALUE(PKV_PREFIX_REMOVED, 2);
VALUE(PKV_PREFIX_CLEARED, 3);
VALUE(PKV_CUDA_FAULT_COUNT, 0x40000000);
VALUE(PKV_CUDA_FAULT_SCALE, 0x20000000);
VALUE(PKV_CUDA_FAULT_SLICES, 0x1fffffff);

int main(void)
{
    return pkv_version() > 0 ? 0 : 1;
}
