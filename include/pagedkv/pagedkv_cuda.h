/*
 * pagedkv_cuda.h - the same calls for caches in the memory of an NVIDIA GPU.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The structs are those of pagedkv.h; here their pointers are to device memory.  No
 * CUDA header is needed, neither to compile with this one nor to build the host's
 * part of the library: the driver (libcuda.so.1) is found when a device is opened.
 * Without one every other call of the library works.
 *
 * The count of slices, the slices themselves, sequence lengths and block tables are
 * read by the kernels, never by the host.  The grid depends on the device alone.  So
 * one captured graph, or one compiled program, serves every step.
 *
 * Rules that hold for every function with a stream:
 *
 *     Order      The work is put on the stream and the call returns.  Nothing waits,
 *                nothing is allocated, no attribute is queried.  It can be captured in
 *                a graph, on any stream but the legacy one (NULL or 1): that cannot be.
 *     Arguments  Structs are read before the call returns; device memory when the
 *                work runs, and not to be changed meanwhile, counts above all.  Views,
 *                shapes and options are checked by the host as for the calls of
 *                pagedkv.h, before anything is put on the stream.
 *     Counts     n < 0 or n > N: nothing is written.  A slice with a negative number,
 *                or that ends outside a buffer, is skipped.  Both show in the status
 *                word.  Columns from n on may be read and never matter.
 *     Status     opts->status_word, an int32 in device memory that the caller has set
 *                to 0, or NULL.  Kernels set PKV_CUDA_FAULT_* bits in it and add the
 *                slices that they skipped, each once for every layer that it names, up
 *                to PKV_CUDA_FAULT_SLICES.  It stays 0 where all was well.
 *     opts       PKV_UPDATE_STRICT is refused with PKV_E_UNSUPPORTED: the host cannot
 *                look at the slices.  PKV_UPDATE_CHECKED asks the driver whether each
 *                pointer is one that the device can use, and whether the stream is of
 *                the device's context: PKV_E_INVALID if not; it costs a question for
 *                each.  (The default streams NULL, 1 and 2 are of any context, and
 *                plans, which take no opts, are not looked at.)
 *                PKV_UPDATE_DEPENDENT_LAUNCH lets the kernel start before the one ahead
 *                of it in the stream has ended; it waits for that one before it reads
 *                anything (code for compute capability 9.0 on; else it has no effect).
 *                PKV_UPDATE_READ_SOON, max_threads and parallel_for have no meaning.
 *     Limits     A token has fewer than 2^26 vectors (copies: of 16 bytes where pointers,
 *                strides and rows allow it, down to one) or units (conversions); a page
 *                that does not adjoin the next has fewer than 2^31 slots, or all the
 *                slices there are lie in the first.  Else PKV_E_UNSUPPORTED.
 *     Pointers   Device memory of the handle's device; pinned host memory works where
 *                the device can address it (that is how pages are swapped).
 *     Numerics   The bytes that the calls of pagedkv.h write.
 *     Errors     As those calls.  Also PKV_E_DEVICE with err->detail, the driver's
 *                CUresult, where a launch failed: nothing was put on the stream then,
 *                or, for many layers, only the launches before it.  The next call
 *                starts afresh.  A fault inside a kernel of anybody's in the context
 *                (an illegal address) is the driver's for good: every later call on
 *                it fails, and only a new process helps.
 *     Threads    A handle may be used by any number of threads at once.
 *     Context    The device's primary context, which cudart, PyTorch and JAX use too.
 *                It need not be current; the caller's current one is kept.
 */
#ifndef PAGEDKV_PAGEDKV_CUDA_H
#define PAGEDKV_PAGEDKV_CUDA_H

#include <pagedkv/pagedkv.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bits of a status word. */
enum {
    PKV_CUDA_FAULT_COUNT  = 1 << 30,      /* a count was outside 0..N, or a plan failed */
    PKV_CUDA_FAULT_SCALE  = 1 << 29,      /* a given scale was not finite or below 2^-126: the
                                             head vectors that it is for were not written */
    PKV_CUDA_FAULT_SLICES = (1 << 29) - 1 /* how many slices were skipped; stays at its most */
};

/* A stream: CUstream or cudaStream_t; NULL is the legacy default stream. */
typedef void *pkv_cuda_stream;

/* One device, opened. */
typedef struct pkv_cuda pkv_cuda;

/* What a device is. */
typedef struct pkv_cuda_info {
    size_t  struct_size;        /* sizeof(pkv_cuda_info) */
    int32_t device;             /* ordinal */
    int32_t driver_version;     /* as 13000 for 13.0 */
    int32_t compute_major;      /* compute capability, as 9 */
    int32_t compute_minor;      /* and 0 */
    int32_t n_multiprocessors;
    int32_t grid_blocks;        /* blocks of every launch */
    int32_t block_threads;
    int32_t reserved;           /* 0 */
    int64_t memory_bytes;
    int64_t l2_bytes;
    char    name[64];           /* as the driver has it, cut; ends with a zero byte */
} pkv_cuda_info;

/*
 * pkv_cuda_device_count() - how many devices the driver has.
 *
 * Returns PKV_OK; PKV_E_INVALID for NULL; PKV_E_UNSUPPORTED where there is no driver
 * or the library has no device code; PKV_E_DEVICE with the driver's code.  On failure
 * *n_out is 0.  Needs no handle.  Cost: finding the driver, milliseconds.
 */
PKV_API pkv_status pkv_cuda_device_count(int32_t *n_out, pkv_error *err);

/*
 * pkv_cuda_open() - make a device ready: find the driver, keep the primary context,
 * load the kernels.  Once a process and device, before any capture: what loads code
 * cannot be captured.
 *
 * out     Receives the handle.  It allocates some KiB of host memory, and the code on
 *         the device.
 * device  Ordinal, 0 .. pkv_cuda_device_count() - 1.
 *
 * Returns
 *     PKV_OK
 *     PKV_E_INVALID      out NULL or no such device.
 *     PKV_E_UNSUPPORTED  no driver, one that is too old (err->detail: the code that it
 *                        gave, or 0 where it lacks a function), a library without
 *                        device code, a device that the code is not for (err->value:
 *                        its compute capability as 70).
 *     PKV_E_NO_MEMORY
 *     PKV_E_DEVICE       err->detail: the driver's code; 100 where it has no device at all.
 * On failure *out is NULL and nothing is kept.  Cost: up to a second.
 */
PKV_API pkv_status pkv_cuda_open(pkv_cuda **out, int32_t device, pkv_error *err);

/*
 * pkv_cuda_close() - unload the kernels and let go of the context.  No work of the
 * handle may run any more, and no graph that holds some may be launched later.  NULL
 * does nothing.
 */
PKV_API void pkv_cuda_close(pkv_cuda *cuda);

/*
 * pkv_cuda_get_info() - fills *out; the caller sets out->struct_size before.  PKV_OK;
 * PKV_E_INVALID; PKV_E_UNSUPPORTED for struct_size.  The driver is not asked again.
 */
PKV_API pkv_status pkv_cuda_get_info(const pkv_cuda *cuda, pkv_cuda_info *out);

/* ------------------------------------------------------------------------- *
 * Update and gather
 * ------------------------------------------------------------------------- */

/*
 * pkv_cuda_update() - pkv_update() on a device.
 *
 * cache, new_kv, slices  Their structs are in host memory, what they point to in the
 *                        device's, *slices->num_slices too.  Given scales as well: one
 *                        that is not finite or below 2^-126 shows in the status word.
 * stream                 See above.
 *
 * Cost: one launch.  On the device each block reads n and the slices, in tiles of 1024;
 * the rows are divided by bytes, so one long slice and many short ones both take all of
 * the device.
 */
PKV_API pkv_status pkv_cuda_update(pkv_cuda *cuda, const pkv_cache *cache, const pkv_new_kv *new_kv,
                                   const pkv_slices *slices, const pkv_update_opts *opts,
                                   pkv_error *err, pkv_cuda_stream stream);

/*
 * pkv_cuda_update_layers() - pkv_update_layers() on a device: one launch for every 64
 * layers, of 256 that follow each other, that differ in nothing but where their memory lies:
 * sizes, strides, dtypes, kinds of scales and group are the same, and so is the alignment.
 */
PKV_API pkv_status pkv_cuda_update_layers(pkv_cuda *cuda, const pkv_cache *caches,
                                          const pkv_new_kv *new_kvs, const int32_t *group_ids,
                                          int64_t n_layers, const pkv_slices *groups,
                                          int64_t n_groups, const pkv_update_opts *opts,
                                          pkv_error *err, pkv_cuda_stream stream);

/* pkv_cuda_gather(), pkv_cuda_gather_layers() - pkv_gather() and pkv_gather_layers(). */
PKV_API pkv_status pkv_cuda_gather(pkv_cuda *cuda, const pkv_cache *cache, const pkv_rows *rows,
                                   const pkv_slices *slices, const pkv_update_opts *opts,
                                   pkv_error *err, pkv_cuda_stream stream);
PKV_API pkv_status pkv_cuda_gather_layers(pkv_cuda *cuda, const pkv_cache *caches,
                                          const pkv_rows *rows, const int32_t *group_ids,
                                          int64_t n_layers, const pkv_slices *groups,
                                          int64_t n_groups, const pkv_update_opts *opts,
                                          pkv_error *err, pkv_cuda_stream stream);

/* ------------------------------------------------------------------------- *
 * The plan of a step, made on the device
 * ------------------------------------------------------------------------- */

/* The requests of a step as attention has them, in device memory. */
typedef struct pkv_cuda_batch {
    size_t         struct_size;     /* sizeof(pkv_cuda_batch) */
    const int32_t *num_seqs;        /* [1] R, 0 <= R <= max_num_reqs */
    int64_t        max_num_reqs;    /* >= 0 */
    const int32_t *context_lens;    /* [max_num_reqs] computed + scheduled */
    const int32_t *query_start_loc; /* [max_num_reqs + 1] first row of each request, and the end:
                                       scheduled is the difference */
    const int32_t *block_table;     /* [max_num_reqs, width], rows block_table_stride apart */
    int64_t        block_table_stride; /* entries, >= block_table_width */
    int64_t        block_table_width;  /* entries, >= 1 */
    int64_t        page_size;          /* S >= 1, tokens */
    int64_t        n_pages;            /* P: page ids must lie below; 0: not checked */
} pkv_cuda_batch;

/*
 * pkv_cuda_plan() - pkv_plan() by the device, in one small kernel, so that the host need
 * not know the lengths: for speculative decoding and asynchronous scheduling.  What
 * pkv_step_plan() fills can be handed in after a copy to the device.
 *
 * max_slice_tokens  S: exact; 0: merged.  Another bound: PKV_E_UNSUPPORTED.
 * out               Arrays in device memory.
 * status_word       See above; may be NULL.
 *
 * A batch that pkv_plan() would refuse (R outside 0..max_num_reqs, a context shorter than
 * its query, rows of query_start_loc that do not rise from 0, a page outside 0..P-1 or
 * over int32, a table too narrow, slices that do not fit out->capacity) sets
 * PKV_CUDA_FAULT_COUNT and *out->num_slices to -1, with which the updates write
 * nothing; the columns are unspecified then.
 *
 * Returns PKV_OK; PKV_E_INVALID for a NULL or a size; PKV_E_UNSUPPORTED; PKV_E_DEVICE.
 * Cost: one block; R and the pages touched, divided over its threads.
 */
PKV_API pkv_status pkv_cuda_plan(pkv_cuda *cuda, const pkv_cuda_batch *batch,
                                 int64_t max_slice_tokens, pkv_slices *out, int32_t *status_word,
                                 pkv_error *err, pkv_cuda_stream stream);

/* A slot for every token, in device memory. */
typedef struct pkv_cuda_slots {
    size_t         struct_size; /* sizeof(pkv_cuda_slots) */
    const void    *slots;       /* [n_tokens] int32 or int64; -1: not written */
    int32_t        slot_bits;   /* 32 or 64 */
    int32_t        reserved;    /* 0 */
    int64_t        n_tokens;    /* 0 .. 2^31 - 1 */
    const int32_t *num_tokens;  /* [1] how many of them are real; NULL: all */
    const int32_t *query_start_loc; /* [max_num_reqs + 1], rising: no slice crosses one; NULL */
    const int32_t *num_seqs;        /* [1] R; NULL if query_start_loc is */
    int64_t        max_num_reqs;    /* 0 if query_start_loc is NULL */
    int64_t        page_size;       /* S >= 1 */
    int64_t        n_slots;         /* P * S: slots must lie below; 0: not checked */
} pkv_cuda_slots;

/*
 * pkv_cuda_plan_slots() - pkv_plan_slots_i32() or _i64() by the device.  Everything else
 * as pkv_cuda_plan(); a slot below -1, at or over n_slots or over int32 fails the plan.
 * Cost: one block; the tokens, divided over its threads.
 */
PKV_API pkv_status pkv_cuda_plan_slots(pkv_cuda *cuda, const pkv_cuda_slots *slots,
                                       int64_t max_slice_tokens, pkv_slices *out,
                                       int32_t *status_word, pkv_error *err,
                                       pkv_cuda_stream stream);

/* ------------------------------------------------------------------------- *
 * Pages copied and swapped
 * ------------------------------------------------------------------------- */

/*
 * pkv_cuda_copy_pages() - pkv_copy_pages() on a device, with a count that it reads.
 *
 * srcs, dsts  As there.  To swap pages out and in, hand in views of pinned host memory
 *             (pkv_cache_swapped() makes them) on one side.
 * copies      [capacity] in device memory.
 * capacity    >= 0.
 * num_copies  [1] in device memory: how many are real; outside 0..capacity nothing is
 *             copied.
 *
 * A copy of a page of neither cache, or with n_tokens outside 1..S, is skipped and
 * counted, once for every layer of its group.  Not looked at: whether a page is written
 * twice, or written and read: the bytes of such pages are unspecified.  Equality of given
 * scales is not looked at either.
 *
 * Returns as pkv_copy_pages(), less what concerns single copies; and PKV_E_DEVICE.
 * Cost: a launch for every 64 layers that are alike (pkv_cuda_update_layers()), and one more
 * where they have computed scales of one kind on both sides.
 */
PKV_API pkv_status pkv_cuda_copy_pages(pkv_cuda *cuda, const pkv_cache *srcs, const pkv_cache *dsts,
                                       const int32_t *group_ids, int64_t n_layers,
                                       const pkv_page_copy *copies, int64_t capacity,
                                       const int32_t *num_copies, const pkv_update_opts *opts,
                                       pkv_error *err, pkv_cuda_stream stream);

#ifdef __cplusplus
}
#endif

#endif /* PAGEDKV_PAGEDKV_CUDA_H */
