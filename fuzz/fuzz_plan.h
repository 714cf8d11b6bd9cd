/* The parts of the planner's target: one function for each kind of input. */
#ifndef PAGEDKV_FUZZ_PLAN_H
#define PAGEDKV_FUZZ_PLAN_H

#include "input.h"

#include <pagedkv/pagedkv.h>

/* Slices in columns of just the capacity, filled with a pattern, and a count of -7. */
typedef struct columns {
    pkv_slices view;
    int32_t   *memory;
    int32_t    n;
} columns;

/* One slice that is expected; wide enough for sums that do not fit the library's. */
typedef struct triple {
    int64_t dst, src, len;
} triple;

enum { COUNT_BEFORE = -7 };

/* Not to be copied: the view points into it. */
void columns_init(columns *c, int64_t capacity);
void columns_free(columns *c);

/* Are there just these n slices, and are the columns behind `written` as they were? */
void columns_expect(const columns *c, const triple *expected, int64_t n, int64_t written);

/* pkv_plan_slots_i32() and pkv_plan_slots_i64(). */
void fuzz_slots(input *in);

/* pkv_token_buckets() and the other rules on sizes. */
void fuzz_sizing(input *in);

#endif
