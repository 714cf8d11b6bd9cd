/* A bounded time series: when it is full, neighbours are added up in pairs. */
#include "series.h"

#include <stddef.h>
#include <stdlib.h>

static const struct {
    const char *name;
    size_t      offset;
} columns[] = {
    {"steps", offsetof(series_point, steps)},
    {"decode_only_steps", offsetof(series_point, decode_only_steps)},
    {"tokens", offsetof(series_point, tokens)},
    {"slices_static", offsetof(series_point, slices_static)},
    {"slices_exact", offsetof(series_point, slices_exact)},
    {"slices_merged", offsetof(series_point, slices_merged)},
    {"update_ns_static", offsetof(series_point, update_ns_static)},
    {"update_ns_exact", offsetof(series_point, update_ns_exact)},
    {"update_ns_merged", offsetof(series_point, update_ns_merged)},
    {"decode_only_tokens", offsetof(series_point, decode_only_tokens)},
    {"decode_only_slices_static", offsetof(series_point, decode_only_slices_static)},
    {"decode_only_slices_exact", offsetof(series_point, decode_only_slices_exact)},
    {"decode_only_slices_merged", offsetof(series_point, decode_only_slices_merged)},
    {"decode_only_update_ns_static", offsetof(series_point, decode_only_update_ns_static)},
    {"decode_only_update_ns_exact", offsetof(series_point, decode_only_update_ns_exact)},
    {"decode_only_update_ns_merged", offsetof(series_point, decode_only_update_ns_merged)},
    {"running", offsetof(series_point, running)},
    {"pages_used", offsetof(series_point, pages_used)},
    {"pages_shared", offsetof(series_point, pages_shared)},
    {"pages_cached", offsetof(series_point, pages_cached)},
    {"evictions", offsetof(series_point, evictions)},
};
enum { N_COLUMNS = sizeof columns / sizeof columns[0] };

static int64_t *column_of(series_point *point, int i)
{
    return (int64_t *)((char *)point + columns[i].offset);
}

bool series_init(series *s)
{
    *s = (series){.steps_per_point = 1, .points = calloc(SERIES_POINTS, sizeof *s->points)};
    return s->points != NULL;
}

void series_free(series *s)
{
    free(s->points);
    *s = (series){0};
}

static void add_point(series_point *to, const series_point *from)
{
    series_point copy = *from;
    for (int i = 0; i < N_COLUMNS; i++) {
        *column_of(to, i) += *column_of(&copy, i);
    }
}

static void halve(series *s)
{
    for (int64_t i = 0; i < SERIES_POINTS / 2; i++) {
        series_point pair = s->points[2 * i];
        add_point(&pair, &s->points[2 * i + 1]);
        s->points[i] = pair;
    }
    s->n_points = SERIES_POINTS / 2;
    s->steps_per_point *= 2;
}

void series_add(series *s, const series_point *step)
{
    if (s->n_points > 0 && s->points[s->n_points - 1].steps < s->steps_per_point) {
        add_point(&s->points[s->n_points - 1], step);
        return;
    }
    if (s->n_points == SERIES_POINTS) {
        halve(s);
    }
    s->points[s->n_points++] = *step;
}

json_t *series_json(const series *s)
{
    json_t *table = json_object();
    for (int i = 0; table != NULL && i < N_COLUMNS; i++) {
        json_t *values = json_array();
        for (int64_t p = 0; values != NULL && p < s->n_points; p++) {
            if (json_array_append_new(values, json_integer(*column_of(&s->points[p], i))) != 0) {
                json_decref(values);
                values = NULL;
            }
        }
        if (json_object_set_new(table, columns[i].name, values) != 0) {
            json_decref(table);
            return NULL;
        }
    }
    return table == NULL ? NULL
                         : json_pack("{s:i, s:I, s:o}", "version", 1, "steps_per_point",
                                     (json_int_t)s->steps_per_point, "columns", table);
}
