/* Number formats for the checks of `pagedkv bench`: docs/numerics.md once more, in double. */
#ifndef PAGEDKV_CLI_BENCH_NUMBERS_H
#define PAGEDKV_CLI_BENCH_NUMBERS_H

#include <stdbool.h>
#include <stdint.h>

#include "cli.h"

/* Element i of a vector. */
double bench_number_at(pkv_dtype dtype, const char *vector, int64_t i);

/* The number of the format that x is rounded to. */
double bench_number_round(pkv_dtype dtype, float x);

/* The largest number of the format, for computed scales. */
float bench_number_most(pkv_dtype dtype);

#endif
