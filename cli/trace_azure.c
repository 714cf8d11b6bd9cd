/*
 * The Azure LLM inference traces: a CSV of time stamp, prompt and answer length.
 *
 *     TIMESTAMP,ContextTokens,GeneratedTokens
 *     2023-11-16 18:17:03.9799600,4808,10
 */
#include "cli.h"
#include "trace.h"
#include "trace_csv.h"

#include <string.h>

static const char header[] = "TIMESTAMP,ContextTokens,GeneratedTokens";

/* Nanoseconds since the first year fit 64 bits up to and with the last. */
enum { FIRST_YEAR = 1970, LAST_YEAR = 2261 };

enum { N_COLUMNS = 3 };

static bool azure_recognise(const char *line, size_t length)
{
    return length == sizeof header - 1 && memcmp(line, header, length) == 0;
}

/* Days from FIRST_YEAR to the start of the year, in the Gregorian calendar. */
static int64_t days_before_year(int64_t year)
{
    int64_t past = year - 1;
    int64_t past_first = FIRST_YEAR - 1;
    return (year - FIRST_YEAR) * 365 + (past / 4 - past / 100 + past / 400) -
           (past_first / 4 - past_first / 100 + past_first / 400);
}

/* Days from FIRST_YEAR to a date; -1 where the calendar has no such date. */
static int64_t days_before_date(int64_t year, int64_t month, int64_t day)
{
    static const int16_t days_before_month[] = {0,   31,  59,  90,  120, 151, 181,
                                                212, 243, 273, 304, 334, 365};
    if (year < FIRST_YEAR || year > LAST_YEAR || month < 1 || month > 12) {
        return -1;
    }
    bool leap = days_before_year(year + 1) - days_before_year(year) == 366;
    int64_t before = days_before_month[month - 1] + (leap && month > 2);
    int64_t length = days_before_month[month] + (leap && month > 1) - before;
    if (day < 1 || day > length) {
        return -1;
    }
    return days_before_year(year) + before + day - 1;
}

/* Reads n digits and, unless it is '\0', the separator behind them. */
static bool scan_field(const char **p, const char *end, int n, char separator, int64_t *out)
{
    if (end - *p < n || cli_scan_int(*p, *p + n, INT32_MAX, out) != *p + n) {
        return false;
    }
    *p += n;
    if (separator == '\0') {
        return true;
    }
    return *p < end && *(*p)++ == separator;
}

static bool parse_time(csv_field field, int64_t *ns)
{
    const char *p = field.begin;
    const char *end = field.end;
    int64_t year, month, day, hour, minute, second, fraction_ns;
    if (!scan_field(&p, end, 4, '-', &year) || !scan_field(&p, end, 2, '-', &month) ||
        !scan_field(&p, end, 2, ' ', &day) || !scan_field(&p, end, 2, ':', &hour) ||
        !scan_field(&p, end, 2, ':', &minute) || !scan_field(&p, end, 2, '\0', &second) ||
        !csv_fraction((csv_field){p, end}, &fraction_ns)) {
        return false;
    }
    int64_t days = days_before_date(year, month, day);
    if (days < 0 || hour > 23 || minute > 59 || second > 59) {
        return false;
    }
    *ns = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000000000 + fraction_ns;
    return true;
}

static const char *azure_parse_line(trace *t, const char *line, size_t length, int64_t line_index)
{
    if (line_index == 0) {
        return azure_recognise(line, length)
                   ? NULL
                   : "the header TIMESTAMP,ContextTokens,GeneratedTokens is missing";
    }
    csv_field fields[N_COLUMNS];
    if (csv_split(line, length, fields, N_COLUMNS) != N_COLUMNS) {
        return "not three columns: TIMESTAMP,ContextTokens,GeneratedTokens";
    }
    trace_request request = {0};
    if (!parse_time(fields[0], &request.arrival_ns)) {
        return "TIMESTAMP is not a time as in 2023-11-16 18:17:03.9799600";
    }
    if (!csv_int(fields[1], INT32_MAX, &request.prompt_tokens)) {
        return "ContextTokens is not a whole number from 1 to 2147483647";
    }
    if (!csv_int(fields[2], INT32_MAX, &request.output_tokens)) {
        return "GeneratedTokens is not a whole number from 0 to 2147483647";
    }
    if (request.prompt_tokens == 0) {
        return TRACE_EMPTY_PROMPT;
    }
    return trace_add(t, &request) ? NULL : TRACE_OUT_OF_MEMORY;
}

const trace_format trace_format_azure = {
    .name = "azure",
    .recognise = azure_recognise,
    .parse_line = azure_parse_line,
};
