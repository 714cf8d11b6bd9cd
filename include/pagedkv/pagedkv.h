/*
 * pagedkv - the paged KV cache of an LLM inference engine, as a C library.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * The way of the data: a plan (which new token goes to which slot) is made once
 * per step and then used by every layer to write new keys and values into the
 * pages of that layer's cache:
 *
 *     requests + block table --pkv_plan()--> slices --pkv_update()--> cache
 *                                                  <--pkv_gather()---
 *
 * Words and axes.  One letter per axis, the same one in every comment:
 *
 *     T   tokens written by one call
 *     P   pages of a cache
 *     S   page size: token slots of one page
 *     H   KV heads
 *     D   elements of one head vector (Dk for keys, Dv for values)
 *     N   capacity: columns of a slices array
 *     n   slices that are real, 0 <= n <= N
 *     R   requests of a step
 *
 *     slot         index of a token in the flattened cache: page * S + offset
 *     slice        (kv_cache_start, new_kv_start, slice_len): copy slice_len
 *                  tokens from row new_kv_start of the new K/V to slot
 *                  kv_cache_start.  Units: tokens
 *     block table  for each request the pages that hold its tokens, in order
 *     combined     K and V interleaved by head: K0 V0 K1 V1 ...
 *     merged       one slice over physically adjacent pages of one request
 *
 * Shapes are written outermost axis first: [P, S, H, D].  Names end in their
 * unit (_bytes, _tokens); n_ counts.  Strides are in bytes.
 *
 * Rules that hold for every function, so that they are not repeated below:
 *
 *     Ownership  Structs are borrowed and plain: the library keeps no pointer
 *                to anything of the caller's after a call returns.
 *     Errors     A function that can fail returns a pkv_status.  All checks
 *                are made before the first store to memory that the function
 *                fills, unless its text says otherwise.  `err` may be NULL; it
 *                is written on failure only.  No function aborts, prints or
 *                touches errno.
 *     Memory     No function allocates, but pkv_memory_alloc() and those that
 *                are named create.
 *     Threads    Every function may run at the same time as any other, on
 *                memory that no two of them write.  The only state of the
 *                library is the chosen kernel table, one atomic pointer.
 *                Threads of the library's own are OpenMP's: a process that
 *                forked after a call with several of them must pass
 *                max_threads = 1 or a parallel_for in the child (libgomp hangs
 *                there), and OpenMP may end a process that is not allowed to
 *                start threads.
 *     Sizes      64 bits, products and sums checked for overflow.
 *     Final      Structs without struct_size (pkv_error, pkv_plane, pkv_scales,
 *                and the planes of rows) never change.
 *     struct_size  Where a struct starts with it, set it to sizeof the struct
 *                (the builders do).  A shorter struct than the library's is
 *                refused below the size that its first release had; a longer
 *                one (a newer caller) is accepted if the tail that the library
 *                does not know is all zero, else PKV_E_UNSUPPORTED.  In arrays
 *                of structs it is the distance of the elements: the same in
 *                all, and a multiple of 8.
 *     Since      0.1.0, unless a text says otherwise.
 */
#ifndef PAGEDKV_PAGEDKV_H
#define PAGEDKV_PAGEDKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PKV_VERSION_MAJOR 0
#define PKV_VERSION_MINOR 1
#define PKV_VERSION_PATCH 0

#ifndef PKV_API
#if defined(__GNUC__)
#define PKV_API __attribute__((visibility("default")))
#else
#define PKV_API
#endif
#endif

/* ------------------------------------------------------------------------- *
 * Version
 * ------------------------------------------------------------------------- */

/*
 * pkv_version() - the version of the library that runs, as a number:
 * major * 10000 + minor * 100 + patch.  Compare it with the header's macros to
 * find a library older than the header.  Cannot fail.  Cost: a constant.
 */
PKV_API int32_t pkv_version(void);

/* pkv_version_string() - the same as static text, "0.1.0". */
PKV_API const char *pkv_version_string(void);

/* ------------------------------------------------------------------------- *
 * Status and errors
 * ------------------------------------------------------------------------- */

/*
 * Result of every call that can fail.  Fixed width, since the width of an enum
 * is the compiler's choice.  Values are never renumbered or used again.
 */
typedef int32_t pkv_status;
enum {
    PKV_OK            = 0,
    PKV_E_INVALID     = 1,  /* NULL, a size of zero, a bad stride, overflow */
    PKV_E_RANGE       = 2,  /* a value outside its bounds; err->index names it */
    PKV_E_STRICT      = 3,  /* allowed, but refused by strict mode */
    PKV_E_UNSUPPORTED = 4,  /* meaningful, but this build or release cannot */
    PKV_E_NO_MEMORY   = 5,  /* the system gave no memory */
    PKV_E_NO_PAGES    = 6,  /* the pool has no page left (from the pool on) */
    PKV_E_STATE       = 7,  /* the object is not in a state for this call */
    PKV_E_DEVICE      = 8,  /* a device or driver failed; err->detail: its code */
    PKV_E_IO          = 9,  /* reading or writing failed */
    PKV_E_CORRUPT     = 10  /* data or an invariant is broken */
};

/* Which rule a slice, a count or a request broke: pkv_error.rule. */
enum {
    PKV_RULE_NONE             = 0,
    PKV_RULE_COUNT            = 1,  /* 0 <= n <= N */
    PKV_RULE_NEW_KV_START     = 2,  /* new_kv_start >= 0 */
    PKV_RULE_KV_CACHE_START   = 3,  /* kv_cache_start >= 0 */
    PKV_RULE_SLICE_LEN        = 4,  /* slice_len >= 0; strict: 1 .. S */
    PKV_RULE_NEW_KV_END       = 5,  /* new_kv_start + slice_len <= T */
    PKV_RULE_KV_CACHE_END     = 6,  /* kv_cache_start + slice_len <= P * S */
    PKV_RULE_SAME_PAGE        = 7,  /* strict: a slice lies inside one page */
    PKV_RULE_NEW_KV_GAP       = 8,  /* strict: new_kv ranges join without gaps */
    PKV_RULE_KV_CACHE_OVERLAP = 9,  /* strict: destinations do not overlap */
    PKV_RULE_COMPUTED         = 10, /* computed >= 0 */
    PKV_RULE_SCHEDULED        = 11, /* scheduled >= 0 */
    PKV_RULE_TABLE            = 12, /* the block table covers the request */
    PKV_RULE_PAGE             = 13, /* 0 <= page < P, and its slots fit int32 */
    PKV_RULE_CAPACITY         = 14, /* an output array is long enough */
    PKV_RULE_SLOT             = 15, /* slot >= -1, and fits int32 */
    PKV_RULE_LIMIT            = 16, /* no more requests or tokens than announced */
    PKV_RULE_SCALE            = 17  /* a given scale is finite and at least 2^-126 */
};

/*
 * Where and why a call failed.  Filled on failure only; owns nothing.  Its
 * layout is final: later calls that need more get a struct of their own.
 */
typedef struct pkv_error {
    pkv_status  code;   /* what the call returned */
    int32_t     rule;   /* PKV_RULE_*, or PKV_RULE_NONE */
    int64_t     index;  /* slice, request or token at fault, or -1 */
    int64_t     layer;  /* layer at fault in a call of many layers, or -1 */
    int64_t     value;  /* the value found, where there is one, else 0 */
    int64_t     limit;  /* the bound that it broke, where there is one, else 0 */
    int64_t     detail; /* driver's code for PKV_E_DEVICE, else 0 */
    const char *what;   /* static text, one line, never NULL after a failure */
} pkv_error;

/*
 * pkv_status_name() - "PKV_OK", "PKV_E_INVALID", ...; "PKV_E_?" for a value
 * that this library does not know.  Static text.
 */
PKV_API const char *pkv_status_name(pkv_status status);

/*
 * pkv_error_format() - one line for people, without a line end.
 *
 * err     A filled error.  NULL gives an empty line.
 * buf     [cap_bytes] characters; always ends with a zero byte if
 *         cap_bytes > 0.  May be NULL if cap_bytes is 0.
 *
 * Returns the length that the whole line has, without the zero byte; a result
 * >= cap_bytes means that the line was cut.  Cannot fail.
 */
PKV_API size_t pkv_error_format(const pkv_error *err, char *buf, size_t cap_bytes);

/* ------------------------------------------------------------------------- *
 * Element types
 * ------------------------------------------------------------------------- */

/*
 * Element type of a cache or of new K/V.  BITS8, BITS16 and BITS32 are opaque
 * items: rows that the library moves and never reads.
 */
typedef int32_t pkv_dtype;
enum {
    PKV_DTYPE_F32      = 1,
    PKV_DTYPE_F16      = 2,
    PKV_DTYPE_BF16     = 3,
    PKV_DTYPE_FP8_E4M3 = 4, /* e4m3fn: no infinities, NaN is 0x7F / 0xFF */
    PKV_DTYPE_FP8_E5M2 = 5,
    PKV_DTYPE_INT8     = 6,
    PKV_DTYPE_INT4     = 7, /* two to a byte, the even element in the low nibble */
    PKV_DTYPE_BITS8    = 8,
    PKV_DTYPE_BITS16   = 9,
    PKV_DTYPE_BITS32   = 10
};

/* pkv_dtype_bits() - bits of one element: 32, 16, 8 or 4; 0 for no dtype. */
PKV_API int32_t pkv_dtype_bits(pkv_dtype dtype);

/*
 * pkv_dtype_name() - the name that the command line uses: f32 f16 bf16 fp8_e4m3
 * fp8_e5m2 int8 int4 bits8 bits16 bits32; NULL for no dtype.  Static text.
 */
PKV_API const char *pkv_dtype_name(pkv_dtype dtype);

/* pkv_dtype_from_name() - the inverse; 0 for NULL and for an unknown name. */
PKV_API pkv_dtype pkv_dtype_from_name(const char *name);

/* ------------------------------------------------------------------------- *
 * Views: where keys and values lie
 * ------------------------------------------------------------------------- */

/*
 * One plane of a cache: all its keys, or all its values.  Element
 * (p, s, h, d) lies at
 *
 *     data + p * page_stride_bytes + s * token_stride_bytes
 *          + h * head_stride_bytes + d * item size
 *
 * D is always contiguous.  Strides are >= 0; one whose axis has a single
 * element is not looked at.  Any alignment works; rows that start on 64 bytes
 * are the fastest.  INT4 needs an even head_dim.
 */
typedef struct pkv_plane {
    void   *data;
    int64_t page_stride_bytes;  /* from one page to the next */
    int64_t token_stride_bytes; /* from one token of a page to the next */
    int64_t head_stride_bytes;  /* from one head of a token to the next */
    int64_t head_dim;           /* Dk or Dv, elements; 0: there is no such plane (V only) */
} pkv_plane;

/* How scales are shared: pkv_scales.kind. */
enum {
    PKV_SCALES_NONE       = 0, /* no scale: as if every scale were 1 */
    PKV_SCALES_TENSOR     = 1, /* one for the plane */
    PKV_SCALES_HEAD       = 2, /* one a head, given by the caller */
    PKV_SCALES_TOKEN_HEAD = 3, /* one a token and head, computed on write */
    PKV_SCALES_GROUP      = 4  /* one a token, head and group of group_size elements, computed
                                  on write; group_size divides head_dim, and is even with INT4 */
};

/*
 * Where the scales of a quantised plane (fp8, int8, int4) lie: binary32, in host
 * memory for host calls and in device memory for device calls.  The scale of
 * (p, s, h), group g, lies at data + p * page_stride_bytes
 * + s * token_stride_bytes + h * head_stride_bytes + g * 4, so scales can lie
 * inside the page or apart.  Any alignment.
 *
 * PKV_SCALES_TENSOR reads the one at data, PKV_SCALES_HEAD one a head: their
 * other strides are not looked at.  Given scales are finite and at least 2^-126.
 * PKV_SCALES_TOKEN_HEAD and PKV_SCALES_GROUP are written by updates and read by
 * gathers; they share no byte with elements or with each other.
 */
typedef struct pkv_scales {
    void   *data;
    int64_t page_stride_bytes;
    int64_t token_stride_bytes;
    int64_t head_stride_bytes;
    int32_t kind;       /* PKV_SCALES_* */
    int32_t group_size; /* elements, for PKV_SCALES_GROUP, else 0 */
} pkv_scales;

/* pkv_cache.flags */
enum {
    /* The layer shares another layer's cache: updates skip it, gathers read it. */
    PKV_CACHE_SHARED = 1u
};

/*
 * One layer's cache, [P, S, H, D] for K and for V.  Slots are numbered through
 * the pages: slot = page * S + offset.  The manager's page size may differ from
 * this one: only slots pass between a plan and a cache.
 *
 * The planes must not overlap each other and the slots of a plane must not
 * overlap each other; pkv_cache_check() says what is accepted.
 */
typedef struct pkv_cache {
    size_t     struct_size; /* sizeof(pkv_cache) */
    int64_t    n_pages;     /* P >= 1 */
    int64_t    page_size;   /* S >= 1, tokens; any value */
    int64_t    n_heads;     /* H >= 1 */
    pkv_dtype  dtype;       /* element type of both planes */
    uint32_t   flags;       /* PKV_CACHE_* */
    pkv_plane  k;           /* always there */
    pkv_plane  v;           /* head_dim 0: K only */
    pkv_scales k_scales;
    pkv_scales v_scales;
} pkv_cache;

/*
 * One plane of new K/V.  Element (t, h, d) lies at
 * data + t * token_stride_bytes + h * head_stride_bytes + d * item size.
 */
typedef struct pkv_new_kv_plane {
    const void *data;
    int64_t     token_stride_bytes; /* >= 0; 0 repeats one row for all tokens */
    int64_t     head_stride_bytes;  /* >= 0 */
    int64_t     head_dim;           /* Dk or Dv, elements; 0: there is no such plane (V only) */
} pkv_new_kv_plane;

/*
 * The new keys and values of one step and one layer, [T, H, D] each.  Strides
 * are free, so K and V may be views into a fused QKV output.
 */
typedef struct pkv_new_kv {
    size_t           struct_size; /* sizeof(pkv_new_kv) */
    int64_t          n_tokens;    /* T >= 0 rows that may be read */
    int64_t          n_heads;     /* H >= 1 */
    pkv_dtype        dtype;
    uint32_t         flags; /* 0 */
    pkv_new_kv_plane k;
    pkv_new_kv_plane v;
} pkv_new_kv;

/* One plane of rows that a gather fills: as pkv_new_kv_plane, but writable. */
typedef struct pkv_rows_plane {
    void   *data;
    int64_t token_stride_bytes;
    int64_t head_stride_bytes;
    int64_t head_dim;
} pkv_rows_plane;

/* The destination of a gather, [T, H, D] each; as pkv_new_kv, but writable. */
typedef struct pkv_rows {
    size_t         struct_size; /* sizeof(pkv_rows) */
    int64_t        n_tokens;    /* T >= 0 rows that may be written */
    int64_t        n_heads;     /* H >= 1 */
    pkv_dtype      dtype;
    uint32_t       flags; /* 0 */
    pkv_rows_plane k;
    pkv_rows_plane v;
} pkv_rows;

/*
 * Builders.  Each fills a whole struct for one common layout; a layout that
 * none of them knows is made by filling the struct.  They share:
 *
 * out          The struct to fill; wholly written on success, untouched on
 *              failure.
 * struct_size  sizeof(*out), so that a newer library never writes past an
 *              older caller's struct.
 * data, k, v   Start of the memory, the caller's.  NULL is allowed, to ask
 *              pkv_cache_bytes() how much is needed; the calls that move data
 *              refuse it.
 * n_pages P, page_size S, n_heads H, head_dim D: as above, each >= 1.
 *
 * Returns PKV_OK; PKV_E_INVALID for out NULL, a size below 1, a dtype that is
 * none, an odd head_dim with INT4, or sizes whose product overflows;
 * PKV_E_UNSUPPORTED for a struct_size that does not fit.
 * Cost: some tens of instructions.
 */

/*
 * pkv_cache_combined() - vLLM's TPU layout [P, S, 2H, D]: K and V of a head side
 * by side, K0 V0 K1 V1 ...; Dk == Dv == D.  One token is one contiguous row.
 */
PKV_API pkv_status pkv_cache_combined(pkv_cache *out, size_t struct_size, void *data,
                                      int64_t n_pages, int64_t page_size, int64_t n_heads,
                                      int64_t head_dim, pkv_dtype dtype);

/*
 * pkv_cache_nhd() - K and V apart, each [P, S, H, D], dense.  v NULL beside a k
 * that is not: keys only.
 */
PKV_API pkv_status pkv_cache_nhd(pkv_cache *out, size_t struct_size, void *k, void *v,
                                 int64_t n_pages, int64_t page_size, int64_t n_heads,
                                 int64_t head_dim, pkv_dtype dtype);

/*
 * pkv_cache_hnd() - K and V apart, each [P, H, S, D], dense.  Pages are not
 * adjacent in this layout: a slice longer than a page is split at page ends.
 * v NULL beside a k that is not: keys only.
 */
PKV_API pkv_status pkv_cache_hnd(pkv_cache *out, size_t struct_size, void *k, void *v,
                                 int64_t n_pages, int64_t page_size, int64_t n_heads,
                                 int64_t head_dim, pkv_dtype dtype);

/*
 * pkv_cache_content() - vLLM's K-and-V-in-one-content layout [P, H, S, Dk + Dv]:
 * for each head and token the key vector and right behind it the value vector.
 */
PKV_API pkv_status pkv_cache_content(pkv_cache *out, size_t struct_size, void *data,
                                     int64_t n_pages, int64_t page_size, int64_t n_heads,
                                     int64_t head_dim_k, int64_t head_dim_v, pkv_dtype dtype);

/*
 * pkv_cache_mla() - multi-head latent attention, one row a token:
 * [P, S, row_dim], H = 1.  The K plane is the latent, elements
 * [0, latent_dim); the V plane is the rope part, elements
 * [rope_offset, rope_offset + rope_dim).  row_dim and rope_offset leave room
 * for alignment: rope_offset >= latent_dim, row_dim >= rope_offset + rope_dim,
 * else PKV_E_INVALID.  Elements between are padding and are never written.
 */
PKV_API pkv_status pkv_cache_mla(pkv_cache *out, size_t struct_size, void *data, int64_t n_pages,
                                 int64_t page_size, int64_t latent_dim, int64_t rope_dim,
                                 int64_t rope_offset, int64_t row_dim, pkv_dtype dtype);

/*
 * pkv_new_kv_combined() - new K/V as upstream passes it, [T, 2H, D], dense:
 * K0 V0 K1 V1 ...  n_tokens may be 0.
 */
PKV_API pkv_status pkv_new_kv_combined(pkv_new_kv *out, size_t struct_size, const void *data,
                                       int64_t n_tokens, int64_t n_heads, int64_t head_dim,
                                       pkv_dtype dtype);

/*
 * pkv_new_kv_nhd() - K [T, H, Dk] and V [T, H, Dv] apart; tokens of K and of V
 * lie token_stride_bytes apart each, heads are dense.  token_stride_bytes 0
 * means dense rows; else it must be at least one row of the wider plane.  Views
 * into a fused QKV output [T, Hq*D + 2*H*D] have its row as the stride.
 * head_dim_v 0 with v NULL: keys only.
 */
PKV_API pkv_status pkv_new_kv_nhd(pkv_new_kv *out, size_t struct_size, const void *k, const void *v,
                                  int64_t n_tokens, int64_t n_heads, int64_t head_dim_k,
                                  int64_t head_dim_v, int64_t token_stride_bytes, pkv_dtype dtype);

/* pkv_rows_combined() - the same as pkv_new_kv_combined(), for a gather. */
PKV_API pkv_status pkv_rows_combined(pkv_rows *out, size_t struct_size, void *data,
                                     int64_t n_tokens, int64_t n_heads, int64_t head_dim,
                                     pkv_dtype dtype);

/* pkv_rows_nhd() - the same as pkv_new_kv_nhd(), for a gather. */
PKV_API pkv_status pkv_rows_nhd(pkv_rows *out, size_t struct_size, void *k, void *v,
                                int64_t n_tokens, int64_t n_heads, int64_t head_dim_k,
                                int64_t head_dim_v, int64_t token_stride_bytes, pkv_dtype dtype);

/*
 * pkv_cache_check() - may this view be used?  The same check that every call
 * with a cache makes first; engines can make it once, when they build the view.
 *
 * cache   A view.  data may be NULL in the K plane (a view that is still being
 *         sized); the calls that move data refuse that.
 *
 * Accepted: P, S, H, D >= 1; a known dtype; strides that keep the slots of a
 * plane apart, whatever their order (each axis, taken by rising stride, steps
 * over everything inside it); K and V in disjoint ranges of memory, or
 * interleaved: with the same strides, or whole tokens or pages of K between those
 * of V; every byte offset below 2^63.
 *
 * Returns PKV_OK; PKV_E_INVALID with err->what; PKV_E_UNSUPPORTED for a
 * struct_size, a flag or a kind of scales that this library does not know.
 * Cost: about 100 instructions.
 */
PKV_API pkv_status pkv_cache_check(const pkv_cache *cache, pkv_error *err);

/*
 * pkv_new_kv_check() - the same for new K/V.  T may be 0, and data NULL only
 * then.  Rows may overlap each other (a stride of 0 repeats a row): they are
 * only read.
 */
PKV_API pkv_status pkv_new_kv_check(const pkv_new_kv *new_kv, pkv_error *err);

/* pkv_rows_check() - the same for the rows of a gather, which must not overlap. */
PKV_API pkv_status pkv_rows_check(const pkv_rows *rows, pkv_error *err);

/*
 * pkv_cache_bytes() - how much memory a view spans.
 *
 * k_bytes, v_bytes  Receive the bytes from the data pointer of the plane to
 *                   behind its last element, 0 for an absent V.  Where V lies
 *                   inside the memory of K (combined, content, MLA), allocate
 *                   what the next line says.
 * total_bytes       Receives the bytes of one allocation that starts at K's
 *                   data pointer and holds both planes, where V starts inside
 *                   or right behind K's range; else k_bytes + v_bytes.
 *                   Each of the three may be NULL.
 *
 * A builder that was called with NULL pointers keeps V's offset from K for the
 * one-allocation layouts, so the answer is right before there is memory.
 *
 * Returns and cost as pkv_cache_check(); on failure nothing is written.
 */
PKV_API pkv_status pkv_cache_bytes(const pkv_cache *cache, int64_t *k_bytes, int64_t *v_bytes,
                                   int64_t *total_bytes, pkv_error *err);

/* ------------------------------------------------------------------------- *
 * Slices
 * ------------------------------------------------------------------------- */

/*
 * A plan: three rows of N columns, of which the first n are real.  The same
 * struct serves host and device: only the place of the memory differs, and n
 * is read where the work runs, so a captured graph or a compiled program
 * serves every count.  What stands in columns n to N never matters.
 *
 * Slots and rows are int32, as upstream's are; byte offsets are 64 bits.
 */
typedef struct pkv_slices {
    size_t   struct_size;    /* sizeof(pkv_slices) */
    int64_t  capacity;       /* N >= 0 */
    int32_t *kv_cache_start; /* [N] first slot */
    int32_t *new_kv_start;   /* [N] first row of the new K/V */
    int32_t *slice_len;      /* [N] tokens; 0 does nothing */
    int32_t *num_slices;     /* [1] n */
} pkv_slices;

/*
 * pkv_slices_from_array() - a view of upstream's array, int32 [3, N].
 *
 * out         Filled; out->struct_size too.
 * array       [3, N], rows kv_cache_start, new_kv_start, slice_len.  NULL only
 *             if N is 0.
 * capacity    N >= 0.
 * num_slices  [1], n.
 *
 * Returns PKV_OK; PKV_E_INVALID for a NULL or a negative capacity;
 * PKV_E_UNSUPPORTED for struct_size.  Nothing is read from the arrays.
 */
PKV_API pkv_status pkv_slices_from_array(pkv_slices *out, size_t struct_size, int32_t *array,
                                         int64_t capacity, int32_t *num_slices);

/*
 * pkv_slices_check() - may these slices be used?  The check that pkv_update()
 * makes before its first store; host memory only.
 *
 * n_tokens       T, rows of the new K/V.
 * n_slots        P * S.
 * page_size      S; looked at by strict mode only.
 * strict         0: n within 0..N; both starts and the length >= 0; both ends
 *                inside their buffers.  Columns from n on are not read.
 *                1: upstream's dynamic validator as well (see
 *                PKV_UPDATE_STRICT).
 * n_tokens_out   Receives the sum of the n lengths.  May be NULL.
 *
 * Returns PKV_OK; PKV_E_INVALID for a NULL row or a bad size; PKV_E_RANGE or
 * PKV_E_STRICT with err->rule and err->index (-1 for the count).  The slice
 * with the lowest index is reported, by its first broken rule; the rules on
 * gaps and overlaps come after all rules on single slices.
 * Cost: about 1 ns a slice.  Strict mode needs order without memory: some 150 ns
 * a slice up to 10,000 slices, and n * n / 256 comparisons in the end.
 */
PKV_API pkv_status pkv_slices_check(const pkv_slices *slices, int64_t n_tokens, int64_t n_slots,
                                    int64_t page_size, int32_t strict, int64_t *n_tokens_out,
                                    pkv_error *err);

/* ------------------------------------------------------------------------- *
 * The plan of a step
 * ------------------------------------------------------------------------- */

/*
 * The requests of one step and their pages.  The block table comes in one of
 * two forms; set the other one's pointers to NULL:
 *
 *     2-D   block_table[r * block_table_stride + i], block_table_width entries
 *           a row; row table_rows[r] instead of r where that is given, so that
 *           a table of all sequences serves any choice of them
 *     CSR   indices[indptr[r] + i], i < indptr[r + 1] - indptr[r]
 *
 * Page i of a request holds its tokens [i * S, (i + 1) * S).  Entries behind
 * the last page that a request touches are not read.
 */
typedef struct pkv_batch {
    size_t         struct_size; /* sizeof(pkv_batch) */
    int64_t        n_requests;  /* R >= 0 */
    const int32_t *computed;    /* [R] tokens already in the cache, >= 0 */
    const int32_t *scheduled;   /* [R] tokens written by this step, >= 0 */
    const int32_t *block_table; /* [R, width], rows block_table_stride entries apart */
    int64_t        block_table_stride; /* entries, >= block_table_width */
    int64_t        block_table_width;  /* entries */
    const int32_t *indptr;             /* [R + 1], rising, from 0 */
    const int32_t *indices;            /* [indptr[R]] */
    int64_t        page_size;          /* S >= 1, tokens */
    int64_t        n_pages;            /* P: page ids must lie below; 0: not checked */
    const int32_t *table_rows;         /* [R] row of the block table for each request, >= 0;
                                          NULL: row r.  With the 2-D form only */
} pkv_batch;

/*
 * pkv_plan() - the slices of a step, once, for every layer.
 *
 * For each request, in order, and for each page that its tokens
 * [computed, computed + scheduled) touch, in order: one slice.  Rows of the new
 * K/V are counted on through the requests.  With max_slice_tokens other than S,
 * a slice of the same request that starts where the last one ended is joined
 * to it while the sum stays within the bound.  Two requests are never joined.
 *
 *     computed [0, 10], scheduled [10, 30], pages [100] and [200, 201, 202],
 *     S = 16: (1600, 0, 10) (3210, 10, 6) (3216, 16, 16) (3232, 32, 8);
 *     merged: (1600, 0, 10) (3210, 10, 30)
 *
 * batch             In host memory, only read.
 * max_slice_tokens  S: exact, one slice a page.  0: merged, no limit.  Else
 *                   merged up to so many tokens; below S: PKV_E_INVALID.
 * out               The caller's arrays, in host memory; must not overlap the
 *                   batch.  Columns from n on are not written.
 * n_tokens_out      Receives T, the sum of scheduled.  May be NULL.
 *
 * Returns
 *     PKV_OK           *out->num_slices and the columns below it are written.
 *     PKV_E_INVALID    a NULL, a size, or two forms of block table at once.
 *     PKV_E_RANGE      err->index names the request: computed or scheduled
 *                      negative, the table too short for it (err->value pages
 *                      given, err->limit pages needed; or indptr does not
 *                      rise: its two entries), a page outside 0..P-1
 *                      or whose slots exceed int32, T over int32; rule
 *                      CAPACITY: the slices from this request on do not fit
 *                      out->capacity (err->limit).
 *
 * After a failure *out->num_slices is unchanged; the columns are unspecified.
 * A capacity of pkv_plan_bound() always does; so does pkv_padded_num_slices()
 * for steps within its limits.
 *
 * Cost: 2 to 4 ns a page, and some 10 ns a request whose entry of the table is
 * not in the processor's cache.  Source of the rule: vLLM's TPU runner,
 * _get_slot_mapping_metadata; merging is ours.
 */
PKV_API pkv_status pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                            int64_t *n_tokens_out, pkv_error *err);

/*
 * pkv_plan_bound() - how many slices the exact plan of a batch has, which also
 * bounds every merged one.
 *
 * n_slices_out  Receives the count.  The block tables are not read.
 *
 * Returns as pkv_plan(), less what concerns pages and capacity; on failure
 * nothing is written.  Cost: about 1 ns a request.
 */
PKV_API pkv_status pkv_plan_bound(const pkv_batch *batch, int64_t *n_slices_out, pkv_error *err);

/*
 * pkv_plan_slots_i32(), pkv_plan_slots_i64() - slices from a slot for every
 * token, as vLLM on GPUs, SGLang and FlashInfer pass it.
 *
 * Tokens whose slots count up by one are joined: inside a page with
 * max_slice_tokens = S, across pages of any owner with 0 (no limit) or a bound.
 *
 * slots             [n_tokens]; -1: this token is not written (padding).
 * n_tokens          0 .. 2^31 - 1.  Token t is row t of the new K/V.
 * page_size         S >= 1.
 * n_slots           P * S: slots must lie below; 0: not checked.
 * max_slice_tokens  As for pkv_plan(), but any bound >= 1 is taken.
 * query_start_loc   [n_requests + 1], rising: first token of each request, and
 *                   the end.  No slice crosses one of them.  NULL: a mapping
 *                   does not tell where requests end, and slots that count up
 *                   across two requests are joined.
 * out               As for pkv_plan(); a capacity of n_tokens always does.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_RANGE with err->index = token for a
 * slot below -1, at or over n_slots, or over int32; rule CAPACITY with
 * err->index = the token that did not fit; rule LIMIT with err->index = the
 * entry of query_start_loc that does not rise within 0..n_tokens.
 * After a failure *out->num_slices is unchanged; the columns are unspecified.
 * Cost: about 1 ns a token.
 */
PKV_API pkv_status pkv_plan_slots_i32(const int32_t *slots, int64_t n_tokens, int64_t page_size,
                                      int64_t n_slots, int64_t max_slice_tokens,
                                      const int32_t *query_start_loc, int64_t n_requests,
                                      pkv_slices *out, pkv_error *err);
PKV_API pkv_status pkv_plan_slots_i64(const int64_t *slots, int64_t n_tokens, int64_t page_size,
                                      int64_t n_slots, int64_t max_slice_tokens,
                                      const int32_t *query_start_loc, int64_t n_requests,
                                      pkv_slices *out, pkv_error *err);

/*
 * pkv_plan_rank() - the slices of one rank where n_ranks ranks share every
 * sequence's cache: token g of a sequence is kept by rank g mod n_ranks, as its
 * token g div n_ranks.
 *
 * batch  As for pkv_plan(), with the whole sequences' computed and scheduled,
 *        and the rank's own block tables: page i of a request holds the rank's
 *        tokens [i * S, (i + 1) * S) of it.  Rows of the new K/V are those of all
 *        tokens, as every rank has them; the rank reads each n_ranks-th one.
 * rank, n_ranks  0 <= rank < n_ranks.
 * n_tokens_out   Receives how many tokens the rank writes.  May be NULL.
 *
 * With one rank: the exact plan of pkv_plan().  With more every slice is one
 * token, since its rows are not neighbours.
 *
 * Returns and state after failure as pkv_plan(); PKV_E_INVALID too for a rank.
 * Cost: some 3 ns a token of the rank.
 */
PKV_API pkv_status pkv_plan_rank(const pkv_batch *batch, int32_t rank, int32_t n_ranks,
                                 pkv_slices *out, int64_t *n_tokens_out, pkv_error *err);

/* What a step may grow to; shapes depend on nothing else. */
typedef struct pkv_step_limits {
    size_t  struct_size;            /* sizeof(pkv_step_limits) */
    int64_t max_num_reqs;           /* requests of a step, >= 1 */
    int64_t max_num_batched_tokens; /* tokens of a step, >= 1 */
    int64_t bucket_gap_tokens;      /* 0: token buckets double; else see pkv_token_buckets() */
    int64_t max_slice_tokens;       /* as for pkv_plan(); 0: merged */
    int32_t num_slices_per_block;   /* passed through to the metadata, >= 1 */
    int32_t reserved;               /* 0 */
} pkv_step_limits;

/*
 * The seven fields that attention and the update need of one step (vLLM's
 * PallasMetadata), padded to shapes that depend on pkv_step_limits and the
 * token bucket only.  The arrays are the caller's.
 */
typedef struct pkv_step {
    size_t struct_size; /* sizeof(pkv_step) */
    /* Given by the caller. */
    pkv_slices *slices;             /* slot_mapping [3, N] and num_kv_update_slices [1] */
    int32_t    *block_tables;       /* [max_num_reqs, block_tables_width] */
    int64_t     block_tables_width; /* B: pages of the longest request, >= 1 */
    int32_t    *context_lens;       /* [max_num_reqs] computed + scheduled */
    int32_t    *query_start_loc;    /* [max_num_reqs + 1] */
    int32_t    *num_seqs;           /* [1] R */
    /* Filled by pkv_step_plan(). */
    int64_t n_tokens;             /* T */
    int64_t token_bucket;         /* T padded */
    int64_t padded_num_slices;    /* N of this bucket: pkv_padded_num_slices() */
    int32_t num_slices_per_block; /* copied from the limits */
    int32_t reserved;
} pkv_step;

/* The smallest token bucket of a step: upstream's. */
#define PKV_MIN_TOKEN_BUCKET 16

/*
 * pkv_step_plan() - pkv_plan() and the rest of a step's metadata.
 *
 * Writes the slices with zero columns from n to padded_num_slices; the block
 * tables, zero behind each request's last page and in rows from R on;
 * context_lens, zero from R on; query_start_loc, the running sum of scheduled,
 * and 1 behind index R, as upstream does; num_seqs.
 *
 * The token bucket is pkv_token_bucket(T, PKV_MIN_TOKEN_BUCKET,
 * max_num_batched_tokens, bucket_gap_tokens), and slices needs a capacity of
 * pkv_padded_num_slices(max_num_reqs, that bucket, S): the bucket of
 * max_num_batched_tokens serves every step.
 *
 * Returns as pkv_plan(); also PKV_E_RANGE with rule LIMIT for more requests or
 * tokens than the limits say, rule TABLE for a request with more pages than
 * block_tables_width, and rule CAPACITY for slices->capacity <
 * padded_num_slices (err->limit).
 * After a failure *num_seqs and *slices->num_slices are unchanged; the other
 * arrays are unspecified.
 * Cost: pkv_plan() and one pass over the padded arrays.
 */
PKV_API pkv_status pkv_step_plan(const pkv_batch *batch, const pkv_step_limits *limits,
                                 pkv_step *step, pkv_error *err);

/* ------------------------------------------------------------------------- *
 * Sizing rules (upstream's)
 *
 * Plain arithmetic on sizes.  An argument outside its stated range gives the
 * result 0, which none of them has otherwise.
 * ------------------------------------------------------------------------- */

/*
 * pkv_token_buckets() - the padded token counts that a runner compiles for.
 * gap_tokens 0: min, 2*min, 4*min, ... until >= max.  Else doubling while the
 * next value is <= gap, then steps of the gap until >= max.
 *
 * min_tokens  A power of two.   max_tokens >= 1.   gap_tokens >= 0.
 * out         [cap], may be NULL if cap is 0; receives the first cap buckets.
 *
 * Returns how many buckets there are; 0 for bad arguments.
 * (16, 512, 64) -> 16 32 64 128 192 256 320 384 448 512.
 */
PKV_API int64_t pkv_token_buckets(int64_t min_tokens, int64_t max_tokens, int64_t gap_tokens,
                                  int64_t *out, int64_t cap);

/*
 * pkv_token_bucket() - the first of those buckets that is >= n_tokens, without
 * building the list; 0 if none is, or for bad arguments.
 */
PKV_API int64_t pkv_token_bucket(int64_t n_tokens, int64_t min_tokens, int64_t max_tokens,
                                 int64_t gap_tokens);

/*
 * pkv_request_buckets() - padded request counts: min, 2*min, ... with
 * max_num_reqs as the last.  (8, 36) -> 8 16 32 36.  Returns the count, as
 * pkv_token_buckets().
 */
PKV_API int64_t pkv_request_buckets(int64_t min_num_reqs, int64_t max_num_reqs, int64_t *out,
                                    int64_t cap);

/*
 * pkv_padded_num_reqs() - min(limit, 8 if n <= 8 else the next power of two);
 * n >= 0, limit >= 1.  (17, 28) -> 28.
 */
PKV_API int64_t pkv_padded_num_reqs(int64_t n_requests, int64_t limit);

/*
 * pkv_padded_num_slices() - N = min(2 * max_num_reqs + token_bucket / S,
 * token_bucket): no step of the bucket needs more slices.  All >= 1.
 */
PKV_API int64_t pkv_padded_num_slices(int64_t max_num_reqs, int64_t token_bucket,
                                      int64_t page_size);

/*
 * pkv_scratch_page_bytes() - bytes of one page in a TPU's scratch memory:
 * S * (2H rounded up to whole 32-bit words of the dtype) * (D rounded up to
 * 128) * bits / 8.  All >= 1, a known dtype.
 */
PKV_API int64_t pkv_scratch_page_bytes(int64_t page_size, int64_t n_heads, int64_t head_dim,
                                       pkv_dtype dtype);

/*
 * pkv_num_slices_per_block() - copies in flight for a scratch budget: the
 * largest power of two <= budget_bytes / page_bytes, 64 at most; 0 if not even
 * one page fits.
 */
PKV_API int32_t pkv_num_slices_per_block(int64_t page_bytes, int64_t budget_bytes);

/*
 * pkv_page_size() - upstream's choice for a model length: 16 above 8192 tokens,
 * else next_pow2(len) / 16 within 16..256.  max_model_len >= 1.
 */
PKV_API int64_t pkv_page_size(int64_t max_model_len);

/*
 * pkv_min_page_size() - the smallest page size with which the block table of
 * max_num_reqs requests fits half of 1 MiB of scalar memory.  All >= 1.
 */
PKV_API int64_t pkv_min_page_size(int64_t max_num_reqs, int64_t max_model_len);

/*
 * pkv_max_num_reqs() - how many requests of max_model_len tokens have room in
 * half of 1 MiB of scalar memory with this page size.  All >= 1.
 */
PKV_API int64_t pkv_max_num_reqs(int64_t max_model_len, int64_t page_size);

/* ------------------------------------------------------------------------- *
 * Update and gather
 * ------------------------------------------------------------------------- */

/* The body that a parallel-for runs once for each part. */
typedef void (*pkv_parallel_body)(void *ctx, int32_t part);

/*
 * The caller's threads: run body(ctx, p) for every p in 0..n_parts-1, in any
 * order, on any threads, at the same time or not, and return when all are done.
 * Parts never need each other, so running them in a loop is right too.
 */
typedef void (*pkv_parallel_for)(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx);

/* pkv_update_opts.flags */
enum {
    /*
     * Refuse what upstream's validator refuses, over the first n columns:
     * starts below 0; lengths outside 1..S; ends outside the buffers; a slice
     * over a page end; gaps between the new_kv ranges taken in order; cache
     * ranges that overlap.  Merged plans do not pass: this mode is for exact
     * ones.
     */
    PKV_UPDATE_STRICT = 1u,
    /* Devices: check pointers and stream.  On the host every check is always made. */
    PKV_UPDATE_CHECKED = 2u,
    /* The rows are read again at once: keep them in the processor's cache where they fit. */
    PKV_UPDATE_READ_SOON = 4u,
    /* CUDA: programmatic dependent launch.  On the host: no meaning, allowed. */
    PKV_UPDATE_DEPENDENT_LAUNCH = 8u
};

/* How to run an update or a gather.  NULL in its place means all zero. */
typedef struct pkv_update_opts {
    size_t           struct_size;   /* sizeof(pkv_update_opts) */
    uint32_t         flags;         /* PKV_UPDATE_* */
    int32_t          max_threads;   /* most parts, without parallel_for never more than
                                       pkv_default_threads(); 0: that many, or with
                                       parallel_for as many as pay, 64 at most */
    pkv_parallel_for parallel_for;  /* NULL: OpenMP where the library has it, else one thread */
    void            *parallel_user; /* handed to parallel_for */
    int32_t         *status_word;   /* devices: counts device-side faults; host: unused */
} pkv_update_opts;

/*
 * pkv_update() - write new keys and values into the pages of one cache.
 *
 * For every i < n, len = slice_len[i], and every j < len:
 *
 *     slot kv_cache_start[i] + j of the cache
 *         = row new_kv_start[i] + j of new_kv, all H heads, K and V
 *
 * Every other byte of the cache keeps its value, padding included.  n = 0 and
 * len = 0 do nothing.  Columns from n on are not read.  A slice may be longer
 * than a page.  Where two slices name the same slot, the bytes of that slot are
 * unspecified and nothing else is harmed.
 *
 * cache    Destination, host memory.  With PKV_CACHE_SHARED: checked, and
 *          nothing is written.
 * new_kv   Source, host memory, only read.  Must not overlap the cache or its
 *          scales: the ranges of memory that their planes span must not meet.
 *          The same H, Dk and Dv; V absent in both or in none.
 * slices   Host memory, only read.
 * opts     May be NULL.
 *
 * Numerics: with one dtype a copy; every bit is kept, NaN payloads too.  From f32,
 * f16 and bf16 to each other and to fp8, int8 and int4: x * r, one binary32
 * product with r = 1 / scale (1 without scales), rounded once to nearest even;
 * fp8, int8 and int4 saturate, f16 and bf16 overflow to infinity, subnormals are
 * kept.  The same bytes on every instruction set, whatever the caller's rounding
 * and flushing modes are.  docs/numerics.md states each rule.
 *
 * Returns
 *     PKV_OK             every slice is written.
 *     PKV_E_INVALID      a NULL, a view that its check refuses, shapes that
 *                        differ, memory that overlaps, unknown flags.
 *     PKV_E_RANGE        n < 0, n > N, or a slice outside a buffer: err->rule
 *                        and err->index say which (index -1: the count); rule
 *                        SCALE for a given scale: err->index is its head,
 *                        err->value 0 for K and 1 for V.
 *     PKV_E_STRICT       strict mode: the same, for upstream's further rules.
 *     PKV_E_UNSUPPORTED  dtypes between which there is no conversion, computed
 *                        scales where new_kv has the cache's own dtype, a newer
 *                        struct.
 *
 * After a failure nothing was written.
 *
 * Threads    Large payloads are divided by bytes into parts of whole
 *            64-byte lines where the rows allow it.  Calls may run at the same
 *            time on one cache if their slots differ.  When the call returns,
 *            all bytes are visible to the calling thread and to whatever it
 *            synchronises with.
 * Cost       Reads and writes T rows; about 2 ns a slice on top.
 * Rule       Upstream: vllm-project/vllm#20235, kv_cache_update.
 */
PKV_API pkv_status pkv_update(const pkv_cache *cache, const pkv_new_kv *new_kv,
                              const pkv_slices *slices, const pkv_update_opts *opts,
                              pkv_error *err);

/*
 * pkv_update_layers() - pkv_update() for many layers in one call.
 *
 * Layer l writes new_kvs[l] into caches[l] by the slices of its group,
 * groups[group_ids[l]].  Hybrid models have several block tables, hence groups.
 *
 * caches, new_kvs  [n_layers].  All elements have the struct_size of the first,
 *                  which is also the distance between elements.
 * group_ids        [n_layers], each in 0..n_groups-1.  NULL: all 0.
 * n_layers         >= 0; 0 does nothing.
 * groups           [n_groups], same rule for struct_size.
 *
 * Layers with PKV_CACHE_SHARED are checked and skipped.  All layers and all
 * slices are checked before the first store; err->layer names the layer.
 * The memory of one layer's cache must not overlap another layer's new K/V or
 * another written cache: that is not checked.
 *
 * Returns, state after failure, threads and cost as pkv_update(); the work of
 * all layers is divided over the threads at once.
 */
PKV_API pkv_status pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                     const int32_t *group_ids, int64_t n_layers,
                                     const pkv_slices *groups, int64_t n_groups,
                                     const pkv_update_opts *opts, pkv_error *err);

/*
 * pkv_gather() - read rows back out of the pages: the inverse of pkv_update().
 *
 * For every i < n and j < slice_len[i]: row new_kv_start[i] + j of rows = slot
 * kv_cache_start[i] + j of the cache.  Every other byte of rows keeps its
 * value.  Where two slices name the same row, its bytes are unspecified.
 *
 * cache    Source, host memory, only read.  PKV_CACHE_SHARED does not matter.
 * rows     Destination, host memory.  Must not overlap the cache or its scales.
 *
 * Numerics: with one dtype a copy; computed scales are refused then, since rows
 * have none.  Else to f32, f16 or bf16: the element times its scale, one binary32
 * product, rounded once.
 *
 * Everything else as pkv_update(); strict mode applies the same rules.
 */
PKV_API pkv_status pkv_gather(const pkv_cache *cache, const pkv_rows *rows,
                              const pkv_slices *slices, const pkv_update_opts *opts,
                              pkv_error *err);

/* pkv_gather_layers() - pkv_gather() for many layers; see pkv_update_layers(). */
PKV_API pkv_status pkv_gather_layers(const pkv_cache *caches, const pkv_rows *rows,
                                     const int32_t *group_ids, int64_t n_layers,
                                     const pkv_slices *groups, int64_t n_groups,
                                     const pkv_update_opts *opts, pkv_error *err);

/* ------------------------------------------------------------------------- *
 * The machine: instruction sets, threads, memory
 * ------------------------------------------------------------------------- */

/*
 * pkv_isa_name() - name of the i-th instruction set that was built in, plainest
 * first: "c", then "avx2", "avx512" on x86-64, "neon" on AArch64.  NULL from the
 * end on and for a negative i.  Static text.
 */
PKV_API const char *pkv_isa_name(int32_t i);

/* pkv_isa_usable() - 1 if this processor can run the i-th one, else 0. */
PKV_API int32_t pkv_isa_usable(int32_t i);

/*
 * pkv_isa_current() - the name of the one in use.  The first call that needs
 * it picks the last usable one, or what the environment variable PAGEDKV_ISA
 * names if that is usable.  All of them write the same bytes.
 */
PKV_API const char *pkv_isa_current(void);

/*
 * pkv_isa_select() - use this one from now on, in all threads.
 *
 * name   A name from pkv_isa_name(), or NULL for the automatic choice.
 *
 * Returns PKV_OK; PKV_E_INVALID for an unknown name; PKV_E_UNSUPPORTED for one
 * that this processor cannot run.  On failure the choice stays.
 * Calls that run meanwhile use the old one or the new one.
 */
PKV_API pkv_status pkv_isa_select(const char *name);

/*
 * pkv_converts() - 1 if updates and gathers convert elements from one dtype to the
 * other, else 0: also for equal ones, which are copied, and for no dtype.  The same
 * on every instruction set.
 */
PKV_API int32_t pkv_converts(pkv_dtype from, pkv_dtype to);

/*
 * pkv_default_threads() - how many threads of its own a call uses at most:
 * OpenMP's own count (OMP_NUM_THREADS, else the processors), or 1 where the
 * library was built without OpenMP.
 */
PKV_API int32_t pkv_default_threads(void);

/* pkv_memory.flags, as asked and as given */
enum {
    PKV_MEMORY_HUGE_PAGES = 1u /* ask the system for huge pages */
};

/* Memory that pkv_memory_alloc() handed out. */
typedef struct pkv_memory {
    size_t   struct_size; /* sizeof(pkv_memory) */
    void    *data;        /* first byte, at least 64-byte aligned */
    uint64_t size_bytes;  /* usable bytes, at least what was asked */
    uint64_t map_bytes;   /* for pkv_memory_free() */
    uint32_t flags;       /* PKV_MEMORY_*: what the system agreed to try */
    uint32_t reserved;
} pkv_memory;

/*
 * pkv_memory_alloc() - memory for a cache, zeroed, page-aligned, and on huge
 * pages where the system has them: scattered rows are bound by page walks, and
 * huge pages need few.  Nothing obliges a caller to use it: any memory will do.
 *
 * out         Filled; the caller sets out->struct_size before.
 * size_bytes  >= 1.
 * flags       0 (the system's own choice) or PKV_MEMORY_HUGE_PAGES.  The flag in
 *             out->flags says that the system took the wish, not that it will
 *             be granted: that is
 *             decided page by page at first touch.
 *
 * The memory is reserved, not touched; the system may find at first touch that
 * it has none left, which no library can report.
 *
 * Returns PKV_OK; PKV_E_INVALID; PKV_E_NO_MEMORY; PKV_E_UNSUPPORTED for
 * struct_size or flags.  On failure *out is unchanged.
 */
PKV_API pkv_status pkv_memory_alloc(pkv_memory *out, uint64_t size_bytes, uint32_t flags);

/*
 * pkv_memory_free() - give it back and clear *memory.  NULL and a cleared
 * struct are allowed and do nothing.
 */
PKV_API void pkv_memory_free(pkv_memory *memory);

#ifdef __cplusplus
}
#endif

#include <pagedkv/moves.h>     /* pages copied and swapped */
#include <pagedkv/pool.h>      /* who owns which page */
#include <pagedkv/prefix.h>    /* which pages hold the beginning of a prompt */
#include <pagedkv/sequences.h> /* which pages hold which sequence */

#endif /* PAGEDKV_PAGEDKV_H */
