/*
 * What every source file may use: failing with a reason, reading structs of
 * another version, arithmetic that notices overflow.
 */
#ifndef PAGEDKV_SRC_INTERNAL_H
#define PAGEDKV_SRC_INTERNAL_H

#include <pagedkv/pagedkv.h>
#include <stdbool.h>

/* Fills *err (if not NULL) with no index, and returns code. */
pkv_status pkv_i_fail(pkv_error *err, pkv_status code, const char *what);

/* The same for PKV_E_RANGE or PKV_E_STRICT at one element of an array. */
pkv_status pkv_i_fail_at(pkv_error *err, pkv_status code, int32_t rule, int64_t index,
                         int64_t value, int64_t limit, const char *what);

/*
 * May a struct of the caller be read as the library's?  `bytes` is its size in
 * this library; a longer one is accepted if its unknown tail is all zero.
 */
pkv_status pkv_i_check_struct(const void *caller_struct, size_t bytes, pkv_error *err);

/* The same for a struct that a builder fills: is there room for `bytes`? */
pkv_status pkv_i_check_out(const void *out, size_t struct_size, size_t bytes);

/* Zeroes the tail that a newer caller's struct has behind the library's. */
void pkv_i_clear_tail(void *out, size_t struct_size, size_t bytes);

/* *r = a * b or a + b; true if that overflowed.  Nested uses short-circuit. */
#define PKV_I_MUL(a, b, r) __builtin_mul_overflow((a), (b), (r))
#define PKV_I_ADD(a, b, r) __builtin_add_overflow((a), (b), (r))

/* Hands a failure on to the caller. */
#define PKV_I_TRY(expr)                 \
    do {                                \
        pkv_status status_ = (expr);    \
        if (status_ != PKV_OK) {        \
            return status_;             \
        }                               \
    } while (0)

#endif
