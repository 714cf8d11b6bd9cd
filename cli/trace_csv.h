/* What the CSV traces share.  Their fields hold no quotes and no commas. */
#ifndef PAGEDKV_CLI_TRACE_CSV_H
#define PAGEDKV_CLI_TRACE_CSV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct csv_field {
    const char *begin;
    const char *end;
} csv_field;

/* Cuts a line at its commas.  The number of fields, max + 1 if there are more than max. */
int csv_split(const char *line, size_t length, csv_field *fields, int max);

/* The whole field a number in [0, max]. */
bool csv_int(csv_field field, int64_t max, int64_t *out);

/* A fraction of a second: nothing, or a point and 1 to 9 digits. */
bool csv_fraction(csv_field field, int64_t *ns);

/* Seconds up to TRACE_MAX_SECONDS, with a fraction or without. */
bool csv_seconds(csv_field field, int64_t *ns);

#endif
