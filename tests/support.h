/*
 * What the test programs share: seeded random numbers, fill patterns, memory
 * between guard pages, and reports that say which case failed.
 */
#ifndef PAGEDKV_TESTS_SUPPORT_H
#define PAGEDKV_TESTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pagedkv/pagedkv.h>

/* ---- random numbers: splitmix64, the same on every machine --------------- */

typedef struct rng {
    uint64_t state;
} rng;

uint64_t rng_next(rng *r);

/* A number in [min, max]. */
int64_t rng_range(rng *r, int64_t min, int64_t max);

/* ---- fill patterns ------------------------------------------------------- */

enum {
    FILL_RANDOM,
    FILL_ZEROS,
    FILL_ONES,
    FILL_NANS,   /* quiet and signalling NaNs of every float format, with payloads */
    FILL_PERIOD, /* i % 251: a prime below 256, so that swapped blocks show */
    FILL_COUNT
};

void fill(void *data, size_t n_bytes, int pattern, uint64_t seed);

/* ---- memory between guard pages ------------------------------------------ */

typedef struct guarded {
    unsigned char *data; /* whole pages; one that cannot be touched lies on each side */
    size_t room_bytes;
} guarded;

/* At least min_bytes, zeroed.  Fails the test if the system has none. */
guarded guarded_new(size_t min_bytes);

void guarded_free(guarded *g);

/* From here on a store is a fault. */
void guarded_protect(const guarded *g);

/* The last n_bytes: the byte behind them is a fault. */
unsigned char *guarded_tail(const guarded *g, size_t n_bytes);

/* malloc() that fails the test instead of returning NULL. */
void *test_alloc(size_t n_bytes);

/* ---- reports ------------------------------------------------------------- */

/* Names the case that runs now; every later failure and fault prints it. */
void note_case(const char *variant, uint64_t seed, const char *shape, ...)
    __attribute__((format(printf, 3, 4)));

/* Prints the case before a SIGSEGV or SIGBUS fails the test.  Call it inside each test. */
void watch_faults(void);

/* Fails with the case, `what` and the first byte that differs. */
void expect_same_bytes(const char *what, const void *found, const void *expected, size_t n_bytes);

/* Fails with the case and the error's text unless status is PKV_OK. */
void expect_ok(pkv_status status, const pkv_error *err);

/* Fails with the case unless the call failed in just this way. */
void expect_error(pkv_status status, const pkv_error *err, pkv_status code, int32_t rule,
                  int64_t index);

/* ---- slices -------------------------------------------------------------- */

/* A plan in memory of its own, [3, capacity].  Not to be copied: view points into it. */
typedef struct slice_list {
    pkv_slices view;
    int32_t    n;
    int32_t   *columns;
} slice_list;

/* Columns are filled with garbage. */
void slice_list_init(slice_list *list, int64_t capacity);

void slice_list_free(slice_list *list);

void slice_list_add(slice_list *list, int64_t kv_cache_start, int64_t new_kv_start,
                    int64_t slice_len);

/* Fails unless the list has exactly these n triples. */
void expect_slices(const slice_list *list, const int32_t (*expected)[3], int32_t n);

#endif
