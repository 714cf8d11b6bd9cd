/* Fields of a CSV line, and the numbers in them. */
#include "trace_csv.h"
#include "cli.h"
#include "trace.h"

#include <string.h>

int csv_split(const char *line, size_t length, csv_field *fields, int max)
{
    const char *end = line + length;
    for (int n = 0; n < max; n++) {
        const char *comma = memchr(line, ',', (size_t)(end - line));
        fields[n] = (csv_field){line, comma == NULL ? end : comma};
        if (comma == NULL) {
            return n + 1;
        }
        line = comma + 1;
    }
    return max + 1;
}

bool csv_int(csv_field field, int64_t max, int64_t *out)
{
    return cli_scan_int(field.begin, field.end, max, out) == field.end;
}

bool csv_fraction(csv_field field, int64_t *ns)
{
    *ns = 0;
    if (field.begin == field.end) {
        return true;
    }
    int64_t n_digits = field.end - field.begin - 1;
    if (*field.begin != '.' || n_digits > 9 ||
        cli_scan_int(field.begin + 1, field.end, INT32_MAX, ns) != field.end) {
        return false;
    }
    for (; n_digits < 9; n_digits++) {
        *ns *= 10;
    }
    return true;
}

bool csv_seconds(csv_field field, int64_t *ns)
{
    int64_t seconds, fraction_ns;
    const char *point = cli_scan_int(field.begin, field.end, TRACE_MAX_SECONDS, &seconds);
    if (point == NULL || !csv_fraction((csv_field){point, field.end}, &fraction_ns)) {
        return false;
    }
    *ns = seconds * 1000000000 + fraction_ns;
    return *ns <= TRACE_MAX_SECONDS * 1000000000;
}
