/* A time series of a replay, bounded in size however long the run. */
#ifndef PAGEDKV_CLI_SERIES_H
#define PAGEDKV_CLI_SERIES_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Sums over one or more steps that follow each other. */
typedef struct series_point {
    int64_t steps;
    int64_t decode_only_steps;
    int64_t tokens;
    int64_t slices_static;
    int64_t slices_exact;
    int64_t slices_merged;
    int64_t update_ns_static;
    int64_t update_ns_exact;
    int64_t update_ns_merged;
    /* Of the steps without prefill alone: a sum over both kinds describes neither. */
    int64_t decode_only_tokens;
    int64_t decode_only_slices_static;
    int64_t decode_only_slices_exact;
    int64_t decode_only_slices_merged;
    int64_t decode_only_update_ns_static;
    int64_t decode_only_update_ns_exact;
    int64_t decode_only_update_ns_merged;
    int64_t running;    /* summed over the steps */
    int64_t pages_used; /* summed over the steps, as the next two */
    int64_t pages_shared; /* used by two or more */
    int64_t pages_cached;
    int64_t evictions; /* how many came in these steps */
} series_point;

enum { SERIES_POINTS = 2048 };

typedef struct series {
    series_point *points; /* [SERIES_POINTS] */
    int64_t       n_points;
    int64_t       steps_per_point; /* doubles each time the array is full */
} series;

bool series_init(series *s);
void series_free(series *s);
void series_add(series *s, const series_point *step);

/* {"steps_per_point": n, "columns": {name: [..], ..}}; NULL if memory ran out. */
json_t *series_json(const series *s);

#endif
